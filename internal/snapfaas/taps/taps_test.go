package taps

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/testenv"
)

// within runs fn in a network namespace of the test's own.
func within(t *testing.T, fn func() error) {
	t.Helper()
	testenv.Root(t)
	ns := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(ns); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Remove(ns); err != nil {
			t.Error(err)
		}
	}()
	if err := netns.Do(ns, fn); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, master string) string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		if l.Type() == "tuntap" {
			m, err := netlink.LinkByName(master)
			if err != nil {
				t.Fatal(err)
			}
			if l.Attrs().MasterIndex != m.Attrs().Index {
				t.Errorf("%s is not on %s", l.Attrs().Name, master)
			}
			out = append(out, l.Attrs().Name)
		}
	}
	return strings.Join(out, " ")
}

func addBridge(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
}

func TestSetupAndRemove(t *testing.T) {
	within(t, func() error {
		addBridge(t, "br0")
		for _, n := range []int{2, 3, 3} { // again and again
			if err := Setup(n, "br0"); err != nil {
				return err
			}
		}
		if got := names(t, "br0"); got != "tap0 tap1 tap2" {
			t.Errorf("there are %q", got)
		}
		for range 2 {
			if err := Remove(3); err != nil {
				return err
			}
		}
		if got := names(t, "br0"); got != "" {
			t.Errorf("%q are left", got)
		}
		return nil
	})
}

func TestRefused(t *testing.T) {
	within(t, func() error {
		if err := Setup(1, "docker0"); err == nil || !strings.Contains(err.Error(), "--bridge") {
			t.Errorf("no bridge: %v", err)
		}
		if err := Setup(1, "lo"); err == nil || !strings.Contains(err.Error(), "not a bridge") {
			t.Errorf("not a bridge: %v", err)
		}
		for _, n := range []int{0, -1, Max + 1} {
			if err := Setup(n, ""); err == nil {
				t.Errorf("%d devices: no error", n)
			}
		}
		addBridge(t, "br0")
		addBridge(t, "tap1") // somebody else's
		if err := Setup(3, "br0"); err == nil || !strings.Contains(err.Error(), "tap1: the name belongs to a bridge") {
			t.Errorf("the name is taken: %v", err)
		}
		if got := names(t, "br0"); got != "" {
			t.Errorf("%q are left after a failure", got)
		}
		if err := Remove(2); err == nil || !strings.Contains(err.Error(), "stays") {
			t.Errorf("remove somebody else's: %v", err)
		}
		return nil
	})
}
