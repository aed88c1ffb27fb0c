package qemu

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/agent/guestbin"
)

func TestArgs(t *testing.T) {
	m := machine{
		id: "0123456789abcdef", accel: AccelTCG, memoryMiB: 192, cpus: 2, tscKHz: 2000000,
		qmpFD: 3, rootFD: 4, tapFD: 5, kernelFD: 6, initrdFD: 7,
		mac:         net.HardwareAddr{6, 0, 0xac, 0x10, 0, 2},
		guestParams: []string{"skep.mtu=1500"},
	}
	args := m.args()
	all := strings.Join(args, " ")
	for _, want := range []string{
		"-name guest=skep-0123456789abcdef", "-accel tcg,thread=multi,tb-size=64", "-cpu max", "size=192M", "-smp 2",
		"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"socket,id=qmp,fd=3", "fd=4,set=1", "read-only=on", "tap,id=net,fd=5", "mac=06:00:ac:10:00:02",
		"-kernel /proc/self/fd/6", "-initrd /proc/self/fd/7", "tsc_early_khz=2000000", "skep.mtu=1500",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
	if !slices.Contains(args, processName(m.id)) {
		t.Error("Reap would not find it")
	}
	m.accel, m.rootFD, m.tapFD = AccelKVM, 0, 0
	all = strings.Join(m.args(), " ")
	for _, not := range []string{"tcg", "tsc_early_khz", "blockdev", "netdev"} {
		if strings.Contains(all, not) {
			t.Errorf("%q is in %s", not, all)
		}
	}
	if !strings.Contains(all, "-accel kvm -cpu host") {
		t.Errorf("no KVM in %s", all)
	}
}

func TestUID(t *testing.T) {
	a, b := uid("0123456789abcdef"), uid("0123456789abcdee")
	if a == b || a < firstUID || a > firstUID+uidMask {
		t.Errorf("%d, %d", a, b)
	}
}

func TestVCPUs(t *testing.T) {
	for millis, want := range map[int64]int64{0: 1, 1: 1, 1000: 1} {
		if got := vcpus(millis); got != want {
			t.Errorf("%d: %d, want %d", millis, got, want)
		}
	}
}

func TestTSC(t *testing.T) {
	if khz := tscKHz(); khz < 100_000 || khz > 20_000_000 {
		t.Errorf("%d kHz", khz)
	}
}

func TestTailBuffer(t *testing.T) {
	var b tailBuffer
	for range 100 {
		_, _ = b.Write([]byte(strings.Repeat("x", 1000)))
	}
	_, _ = b.Write([]byte("end\n"))
	if s := b.String(); len(s) > maxMessages || !strings.HasSuffix(s, "end") {
		t.Errorf("%d bytes", len(s))
	}
}

// What a guest says of a process's end is brought within bounds.
func TestExit(t *testing.T) {
	for _, test := range []struct {
		in           *agentpb.WaitResponse
		code, signal int
	}{
		{&agentpb.WaitResponse{Code: 3}, 3, 0},
		{&agentpb.WaitResponse{Code: 137, Signal: 9}, 137, 9},
		{&agentpb.WaitResponse{Code: 1 << 31, Signal: 1 << 31}, 0, 0},
	} {
		if e := exit(test.in); e.Code != test.code || e.Signal != test.signal || e.At.IsZero() {
			t.Errorf("%v: %+v", test.in, e)
		}
	}
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	ok := Config{CacheDir: dir, QEMU: "/bin/true", Kernel: filepath.Join(dir, "vmlinux"), Agent: []byte("agent")}
	if err := os.WriteFile(ok.Kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(ok); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"cache dir": func(c *Config) { c.CacheDir = "relative" },
		"accel":     func(c *Config) { c.Accel = "fast" },
		"/no/qemu":  func(c *Config) { c.QEMU = "/no/qemu" },
		"/no/linux": func(c *Config) { c.Kernel = "/no/linux" },
	} {
		c := ok
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s", err, want)
		}
	}
	c := ok
	c.Agent = nil
	if _, err := guestbin.Agent(); err != nil {
		if _, err := New(c); !errors.Is(err, guestbin.ErrMissing) {
			t.Errorf("error %v, want %v", err, guestbin.ErrMissing)
		}
	}
	t.Setenv("PATH", dir)
	c = ok
	c.QEMU = ""
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), debian) {
		t.Errorf("error %v, want the package's name", err)
	}
}

func TestHasVirtualization(t *testing.T) {
	for text, want := range map[string]bool{
		"flags\t\t: fpu vmx sse\n": true, "flags : svm\n": true, "flags\t: fpu sse\n": false,
		"vmx flags\t: ept vpid\nflags\t: fpu\n": false, "": false,
	} {
		if got := hasVirtualization(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// Reap finds a process by its name even if it is in no cgroup, and leaves
// others alone.
func TestKillNamed(t *testing.T) {
	id := "00000000000000aa"
	mine := exec.Command("sleep", "1000")
	mine.Args = []string{"sleep", "1000"}
	other := exec.Command("sh", "-c", "sleep 1000; :", processName(id)+"x")
	named := exec.Command("sh", "-c", "while :; do sleep 0.1; done", processName(id))
	for _, c := range []*exec.Cmd{mine, other, named} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	}
	if found, err := killNamed(processName(id)); !found || err != nil {
		t.Fatalf("%v, %v", found, err)
	}
	if err := named.Wait(); err == nil {
		t.Error("it was not killed")
	}
	if found, err := killNamed(processName(id)); found || err != nil {
		t.Errorf("once more: %v, %v", found, err)
	}
	for _, c := range []*exec.Cmd{mine, other} {
		if c.Process.Signal(syscall.Signal(0)) != nil {
			t.Error("another process was killed")
		}
	}
}
