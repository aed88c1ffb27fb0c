package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/agent/guestbin"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
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
		"-kernel /proc/self/fd/6", "-initrd /proc/self/fd/7", "tsc_early_khz=2000000", "skep.mtu=1500", "skep.timer=62500",
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
	for _, not := range []string{"tcg", "tsc_early_khz", "skep.timer", "blockdev", "netdev"} {
		if strings.Contains(all, not) {
			t.Errorf("%q is in %s", not, all)
		}
	}
	if !strings.Contains(all, "-accel kvm -cpu host") {
		t.Errorf("no KVM in %s", all)
	}
}

func TestFaults(t *testing.T) {
	var f faults
	for i, test := range []struct {
		err  error
		want bool
	}{
		{errors.New("no memory"), false},
		{fmt.Errorf("boot: %w", microvm.ErrTimer), true},
		{fmt.Errorf("boot: %w", microvm.ErrSilent), true},
		{fmt.Errorf("boot: %w", microvm.ErrTimer), true},
		{fmt.Errorf("boot: %w", microvm.ErrTimer), true},
		{fmt.Errorf("boot: %w", microvm.ErrTimer), false},
		{fmt.Errorf("boot: %w", microvm.ErrSilent), false},
	} {
		if got := f.again(test.err); got != test.want {
			t.Errorf("%d, %v: %v", i, test.err, got)
		}
	}
}

func TestTSC(t *testing.T) {
	if khz := tscKHz(); khz < 100_000 || khz > 20_000_000 {
		t.Errorf("%d kHz", khz)
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
