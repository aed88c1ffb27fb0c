package firecracker_test

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
)

// perSecond limits bytes.
func perSecond(n int64) *fcapi.RateLimiter {
	return &fcapi.RateLimiter{Bandwidth: &fcapi.TokenBucket{Size: n / 10, RefillMillis: 100}}
}

// A node's rates hold also in machines that were saved under other ones. Only
// lower bounds of times are looked at.
func TestRates(t *testing.T) {
	needFirecracker(t)
	slow := newDriver(t, firecracker.Config{DiskRate: perSecond(1 << 20), SendRate: perSecond(1 << 20)})
	x := sandboxtest.NewScenario(t, newDriver(t, firecracker.Config{}), sandboxtest.Options{})
	const size = 4 << 20
	noise := make([]byte, size*3/4)
	_, _ = rand.Read(noise) // never fails
	disk := x.Disk(t, "/big", base64.StdEncoding.EncodeToString(noise))
	give := func(s *sandbox.Spec) { s.Disks = []string{disk} }
	g := x.Serve(t, give)
	image := sandbox.Image{Dirs: []string{g.Save(t, false)}}
	g.Destroy(t)
	read := func(g *sandboxtest.Guest, what string) time.Duration {
		t.Helper()
		g.Mount(t, "/srv")
		var n int
		begin := time.Now()
		if g.Get(t, "/length", &n, "path", "/srv/big"); n != size {
			t.Errorf("%s: %d bytes, want %d", what, n, size)
		}
		took := time.Since(begin)
		t.Logf("%s: 4 MiB in %v", what, took)
		return took
	}
	free := x.Restore(t, sandbox.Restore{Image: image}, give)
	read(free, "no limit")
	free.Destroy(t)
	limited := x.With(slow).Restore(t, sandbox.Restore{Image: image}, give)
	if took := read(limited, "1 MiB/s"); took < 2*time.Second {
		t.Errorf("4 MiB were read in %v, at 1 MiB/s", took)
	}
	begin := time.Now()
	res := limited.Download(t, 4)
	if took := time.Since(begin); res != size || took < 2*time.Second {
		t.Errorf("%d bytes were sent in %v, at 1 MiB/s", res, took)
	}
	// And the other way: what was saved with limits is restored without.
	image = sandbox.Image{Dirs: []string{limited.Save(t, true), image.Dirs[0]}}
	limited.Destroy(t)
	again := x.Restore(t, sandbox.Restore{Image: image}, give)
	if n := again.Download(t, 4); n != size {
		t.Errorf("%d bytes were sent", n)
	}
}

// Free memory of the guest comes back to the host, and the balloon takes what
// was asked for, also in a machine that was saved with another size.
func TestBalloon(t *testing.T) {
	needFirecracker(t)
	const mib, used = 1 << 20, 96
	x := sandboxtest.NewScenario(t, newDriver(t, firecracker.Config{Balloon: true}), sandboxtest.Options{})
	g := x.Serve(t, nil)
	before := g.MemoryBytes(t)
	g.Exec(t, "/guest", "hog", fmt.Sprint(used))
	x.Eventually(t, func() error {
		if now := g.MemoryBytes(t); now == 0 || now > before+used/2*mib {
			return fmt.Errorf("of %d MiB that were used and freed the host still has: %d MiB, before %d", used, now/mib, before/mib)
		}
		return nil
	})
	t.Logf("the host has %d MiB in use, before %d MiB were used and freed %d", g.MemoryBytes(t)/mib, used, before/mib)
	image := sandbox.Image{Dirs: []string{g.Save(t, false)}}
	g.Destroy(t)

	taken := func(g *sandboxtest.Guest) (pages int) {
		var text string
		g.Get(t, "/read", &text, "path", "/proc/vmstat")
		for line := range strings.Lines(text) {
			_, _ = fmt.Sscanf(line, "balloon_inflate %d", &pages)
		}
		return pages
	}
	for _, size := range []int64{32, 64} {
		x = x.With(newDriver(t, firecracker.Config{Balloon: true, BalloonMiB: size}))
		g := x.Restore(t, sandbox.Restore{Image: image}, nil)
		x.Eventually(t, func() error {
			if got := int64(taken(g)) * 4096 / mib; got < size {
				return fmt.Errorf("the balloon has taken %d MiB, of %d", got, size)
			}
			return nil
		})
		t.Logf("the balloon has taken the %d MiB", size)
		image.Dirs = []string{g.Save(t, false)}
		g.Destroy(t)
	}
}

// Metadata is there if it was given, with a token, and in a restored machine
// it is this node's. Without, nobody answers: TestConformance/Isolation.
func TestMetadata(t *testing.T) {
	needFirecracker(t)
	driver := func(word string) sandbox.Driver {
		return newDriver(t, firecracker.Config{MMDS: json.RawMessage(`{"node": "` + word + `"}`)})
	}
	x := sandboxtest.NewScenario(t, driver("one"), sandboxtest.Options{})
	check := func(g *sandboxtest.Guest, want string) {
		t.Helper()
		var answers []string
		g.Get(t, "/metadata", &answers)
		if len(answers) != 2 || !strings.HasPrefix(answers[0], "401 ") || !strings.Contains(answers[1], `"`+want+`"`) {
			t.Errorf("metadata without and with a token: %q, want 401 and %q", answers, want)
		}
	}
	g := x.Serve(t, nil)
	check(g, "one")
	image := sandbox.Image{Dirs: []string{g.Save(t, false)}}
	g.Destroy(t)
	check(x.With(driver("two")).Restore(t, sandbox.Restore{Image: image}, nil), "two")
}

// A machine that has lost what it saved before is saved as a whole, and still
// as a difference.
func TestLost(t *testing.T) {
	needFirecracker(t)
	x := sandboxtest.NewScenario(t, newDriver(t, firecracker.Config{}), sandboxtest.Options{})
	g := x.Serve(t, nil)
	var sum, got string
	g.Get(t, "/remember", &sum, "mb", "8", "seed", "3")
	g.Save(t, false)
	firecracker.Lose(g.Sandbox())
	image := sandbox.Image{Dirs: []string{g.Save(t, false)}}
	g.Destroy(t)
	g = x.Restore(t, sandbox.Restore{Image: image}, nil)
	if g.Get(t, "/recall", &got); got != sum {
		t.Errorf("restored from all of the memory it has %s, want %s", got, sum)
	}
	g.Get(t, "/remember", &sum, "mb", "4", "seed", "4")
	firecracker.Lose(g.Sandbox())
	image.Dirs = []string{g.Save(t, true), image.Dirs[0]}
	g.Destroy(t)
	g = x.Restore(t, sandbox.Restore{Image: image, Mode: sandbox.RestoreHint}, nil)
	if g.Get(t, "/recall", &got); got != sum {
		t.Errorf("restored from the difference it has %s, want %s", got, sum)
	}
}
