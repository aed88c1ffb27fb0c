package api_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/skep-dev/skep/internal/api"
)

// log shows warnings alone: a test run that prints is one that warns.
var log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

// start starts a server under dir, and closes it at the test's end.
func start(t testing.TB, dir string) (*api.Server, string) {
	t.Helper()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	server, err := api.Start(t.Context(), api.Config{
		Dir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Kubeconfig: kubeconfig, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, server) })
	return server, kubeconfig
}

func stop(t testing.TB, server *api.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := server.Close(ctx); err != nil {
		t.Error(err)
	}
}

// eventually polls until check says done; what it says last is the failure.
func eventually(t testing.TB, check func() (done bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		done, state := check()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it did not come about: ", state)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(wait):
		}
	}
}

func TestSecretsArePrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, kubeconfig := start(t, dir)
	if mode := fileMode(t, filepath.Join(dir, "data")); mode != 0o700 {
		t.Errorf("the folder has mode %o", mode)
	}
	if mode := fileMode(t, kubeconfig); mode != 0o600 {
		t.Errorf("kubeconfig has mode %o", mode)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, entry := range entries {
		names[entry.Name()] = true
		if mode := fileMode(t, filepath.Join(dir, "data", entry.Name())); mode != 0o600 {
			t.Errorf("%s has mode %o", entry.Name(), mode)
		}
	}
	for _, name := range []string{"api.db", "api.sock", "api-token", "api-ca.pem"} {
		if !names[name] {
			t.Errorf("%s is missing of %v", name, names)
		}
	}
}

func fileMode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestTokenAndCASurvive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, kubeconfig := start(t, dir)
	before, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, first)
	start(t, dir)
	after, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if before.AuthInfos[api.AdminUser].Token != after.AuthInfos[api.AdminUser].Token {
		t.Error("the token is another after a restart")
	}
	if string(before.Clusters["skep"].CertificateAuthorityData) != string(after.Clusters["skep"].CertificateAuthorityData) {
		t.Error("the CA is another after a restart")
	}
}

func TestSecondServerOnOneFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, dir)
	_, err := api.Start(t.Context(), api.Config{Dir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Log: log})
	if !errors.Is(err, api.ErrLocked) {
		t.Fatalf("a second server on the folder: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	_, err = api.Start(t.Context(), api.Config{Dir: dir, Listen: taken.Addr().String(), Log: log})
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Fatalf("start on a taken port: %v", err)
	}
	// Nothing is left that would be in the way.
	server, err := api.Start(t.Context(), api.Config{Dir: dir, Listen: "127.0.0.1:0", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	stop(t, server)
}

func TestDeepFolder(t *testing.T) {
	t.Parallel()
	start(t, filepath.Join(t.TempDir(), strings.Repeat("d", 120)))
}

func TestStartCanBeCancelled(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond} {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), after)
		server, err := api.Start(ctx, api.Config{Dir: dir, Listen: "127.0.0.1:0", Log: log})
		cancel()
		if err == nil {
			stop(t, server) // it was quicker
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled after %v: %v", after, err)
		}
		start(t, dir) // and nothing is in the way
	}
}

// It is not parallel: it counts goroutines.
func TestCloseLeavesNothingRunning(t *testing.T) {
	stacks := func() string {
		buffer := make([]byte, 4<<20)
		return string(buffer[:runtime.Stack(buffer, true)])
	}
	for range 2 {
		server, _ := start(t, t.TempDir())
		stop(t, server)
	}
	eventually(t, func() (bool, string) {
		all := stacks()
		for _, trace := range []string{"kine", "grpc.(*Server)", "etcd/client", "internal/api.", "api/collector", "net/http.(*Server).Serve"} {
			for _, one := range strings.Split(all, "\n\n") {
				// Tests themselves, waiting for their turn, do not count.
				if strings.Contains(one, trace) && !strings.Contains(one, "testing.tRunner") {
					return false, one
				}
			}
		}
		return true, ""
	})
}

func BenchmarkStart(b *testing.B) {
	for _, again := range []bool{false, true} {
		name := map[bool]string{false: "first", true: "again"}[again]
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			if again {
				server, _ := start(b, dir)
				stop(b, server)
			}
			for b.Loop() {
				if !again {
					b.StopTimer()
					dir = b.TempDir()
					b.StartTimer()
				}
				server, _ := start(b, dir)
				b.StopTimer()
				stop(b, server)
				b.StartTimer()
			}
		})
	}
}
