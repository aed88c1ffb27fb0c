package fcapi_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
)

// serve answers all requests with h, and returns a client.
func serve(t *testing.T, h http.HandlerFunc) *fcapi.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go s.Serve(l) //nolint:errcheck // ends with Close
	c := fcapi.New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	})
	t.Cleanup(func() { c.Close(); s.Close() })
	return c
}

// What comes back is not trusted: it is the guest's monitor that speaks.
func TestHostileAnswers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"not JSON": func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) },
		"long reason": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			w.Write([]byte(`{"fault_message":"` + strings.Repeat("x\\n", 10000) + `"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, h)
			_, err := c.Version(t.Context())
			if err == nil || len(err.Error()) > 4096 || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %.100v", err)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		w.Write([]byte(`{"fault_message":"The vCPU number is invalid"}`))
	})
	err := c.PutMachineConfig(t.Context(), fcapi.MachineConfig{})
	var e *fcapi.Error
	if !errors.As(err, &e) || e.Status != http.StatusBadRequest || e.Message != "The vCPU number is invalid" || e.Path != "/machine-config" {
		t.Errorf("error is %v", err)
	}
}

// A real Firecracker takes, or refuses with its reason, what the client sends
// before a machine starts; for that it needs no KVM.
func TestRealProcess(t *testing.T) {
	program, err := exec.LookPath(filepath.Join(guestkernel.Dir, "firecracker"))
	if err != nil {
		program, err = exec.LookPath("firecracker")
	}
	if err != nil {
		t.Skip("this test needs firecracker: skep setup")
	}
	dir, err := os.MkdirTemp("", "fcapi-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sock := filepath.Join(dir, "api.sock")
	cmd := exec.Command(program, "--api-sock", sock, "--id", "fcapi", "--level", "Error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := fcapi.New(func(ctx context.Context) (net.Conn, error) {
		for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", sock)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
	})
	t.Cleanup(c.Close)
	file := filepath.Join(dir, "disk")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	limits := &fcapi.RateLimiter{
		Bandwidth: &fcapi.TokenBucket{Size: 1 << 20, RefillMillis: 100, OneTimeBurst: 1 << 21},
		Ops:       &fcapi.TokenBucket{Size: 100, RefillMillis: 100},
	}
	info, err := c.Describe(ctx)
	if err != nil || info.ID != "fcapi" || info.State != "Not started" {
		t.Fatalf("Describe: %+v, %v", info, err)
	}
	if v, err := c.Version(ctx); err != nil || v != info.Version {
		t.Errorf("Version: %q, %v", v, err)
	}
	for _, step := range []struct {
		name string
		err  error
	}{
		{"machine", c.PutMachineConfig(ctx, fcapi.MachineConfig{VCPUs: 1, MemoryMiB: 128, TrackDirtyPages: true})},
		{"boot", c.PutBootSource(ctx, fcapi.BootSource{Kernel: file, Initrd: file, Args: "quiet"})},
		{"drive", c.PutDrive(ctx, fcapi.Drive{ID: "root", Path: file, ReadOnly: true, RateLimiter: limits})},
		{"balloon", c.PutBalloon(ctx, fcapi.Balloon{DeflateOnOOM: true, StatsInterval: 1, FreePageReporting: true})},
		{"entropy", c.PutEntropy(ctx, fcapi.Entropy{})},
		{"serial", c.PutSerial(ctx, fcapi.Serial{RateLimiter: &fcapi.TokenBucket{Size: 1 << 20, RefillMillis: 1000}})},
		{"cpu", c.PutCPUConfig(ctx, fcapi.CPUConfig(`{"cpuid_modifiers":[],"msr_modifiers":[]}`))},
	} {
		if step.err != nil {
			t.Errorf("%s: %v", step.name, step.err)
		}
	}
	for name, err := range map[string]error{
		"too many processors": c.PutMachineConfig(ctx, fcapi.MachineConfig{VCPUs: 33, MemoryMiB: 128}),
		"no such TAP device":  c.PutNetworkInterface(ctx, fcapi.NetworkInterface{ID: "net", Device: "skep-none/x", MAC: "06:00:00:00:00:01"}),
		"no such snapshot": c.LoadSnapshot(ctx, fcapi.SnapshotLoad{StatePath: "/none", Memory: &fcapi.MemoryBackend{Type: fcapi.BackendFile, Path: "/none"},
			NetworkOverrides: []fcapi.NetworkOverride{{ID: "net", Device: "tap0"}}, TrackDirtyPages: true}),
		"not running":                      c.SetState(ctx, fcapi.Paused),
		"a disk's change before the start": c.PatchDrive(ctx, fcapi.DriveUpdate{ID: "root", Path: file, RateLimiter: limits}),
		"metadata of no card":              c.PutMMDSConfig(ctx, fcapi.MMDSConfig{Version: fcapi.MMDSv2, Interfaces: []string{"none"}}),
	} {
		var e *fcapi.Error
		if !errors.As(err, &e) || e.Message == "" {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}
