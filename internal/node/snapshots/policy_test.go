package snapshots

import (
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		policy         string
		ready, end     bool
		first, second  bool   // after that response
		next0, next100 uint64 // after which to ask
	}{
		{"off", false, false, false, false, 0, 0},
		{"after-ready", true, false, false, false, 0, 0},
		{"at-scale-down", false, true, false, false, 0, 0},
		{"after-first-response", false, false, true, true, 1, 101},
		{"after-n=2", false, false, false, true, 2, 101},
	} {
		p, err := ParsePolicy(tt.policy)
		if err != nil || p.String() != tt.policy {
			t.Fatalf("%s: %v, %v", tt.policy, p, err)
		}
		got := []bool{
			p.Save(Situation{Moment: AtReady}), p.Save(Situation{Moment: AtEnd, Responses: 9}),
			p.Save(Situation{Moment: AtResponse, Responses: 1}), p.Save(Situation{Moment: AtResponse, Responses: 2}),
		}
		for n, want := range []bool{tt.ready, tt.end, tt.first, tt.second} {
			if got[n] != want {
				t.Errorf("%s: %v", tt.policy, got)
			}
		}
		next := func(n uint64) uint64 { return p.Next(Situation{Responses: n}) }
		if next(0) != tt.next0 || next(100) != tt.next100 {
			t.Errorf("%s: next %d, %d", tt.policy, next(0), next(100))
		}
	}
	for _, bad := range []string{"", "sometimes", "after-n", "after-n=0", "after-n=-1", "after-n=1e9", "off=1"} {
		if _, err := ParsePolicy(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("ParsePolicy(%q): %v", bad, err)
		}
	}
}

func TestPool(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	ago := func(seconds ...int) (at []time.Time) {
		for _, s := range seconds {
			at = append(at, now.Add(-time.Duration(s)*time.Second))
		}
		return at
	}
	for _, tt := range []struct {
		pool   string
		starts []time.Time
		want   int
	}{
		{"0", ago(1), 0}, {"3", nil, 3}, {"16", nil, 16},
		{"auto", nil, 0}, {"auto", ago(61), 0}, {"auto", ago(70, 5), 1}, {"auto", ago(9, 8, 7, 6, 5, 4), 4},
	} {
		p, err := ParsePool(tt.pool)
		if err != nil || p.String() != tt.pool {
			t.Fatalf("%s: %v, %v", tt.pool, p, err)
		}
		if got := p.Size(now, tt.starts); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.pool, got, tt.want)
		}
	}
	for _, bad := range []string{"", "17", "-1", "many"} {
		if _, err := ParsePool(bad); err == nil {
			t.Errorf("ParsePool(%q): no error", bad)
		}
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var b backoff
	if b.blocked(now) {
		t.Error("blocked without a failure")
	}
	for n, want := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
		b.failed(now)
		if !b.blocked(now.Add(want-1)) || b.blocked(now.Add(want)) {
			t.Errorf("failure %d: until %s", n+1, b.until.Sub(now))
		}
	}
	for range 100 {
		b.failed(now)
	}
	if d := b.until.Sub(now); d != maxPause {
		t.Errorf("after many failures: %s", d)
	}
	if b.worked(); b.blocked(now) {
		t.Error("blocked after a success")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	none, can := sandbox.Capabilities{}, sandbox.Capabilities{Snapshot: true, RestoreModes: []sandbox.RestoreMode{sandbox.RestoreEager}}
	paging := sandbox.Capabilities{Snapshot: true, LayeredSnapshot: true, OnDemandMemory: true, RestoreModes: []sandbox.RestoreMode{sandbox.RestoreEager, sandbox.RestorePager}}
	for _, tt := range []struct {
		name string
		o    Options
		can  sandbox.Capabilities
		off  bool // no snapshots on the node
		mode sandbox.RestoreMode
		bad  string // in the error, with the annotation's name; "": none
	}{
		{name: "default", o: Options{Policy: DefaultPolicy, Restore: true}, can: can},
		{name: "mode", o: Options{Mode: sandbox.RestoreEager, Asked: Asked{Restore: "x"}}, can: can, mode: sandbox.RestoreEager},
		{name: "default mode it cannot", o: Options{Mode: sandbox.RestorePager}, can: can},
		{name: "mode it cannot", o: Options{Mode: sandbox.RestorePager, Asked: Asked{Restore: "x"}}, can: can, bad: "auto, always, off, eager"},
		{name: "no snapshots", o: Options{Policy: DefaultPolicy, Restore: true}, can: none},
		{name: "switched off", o: Options{Policy: DefaultPolicy, Restore: true}, can: can, off: true},
		{name: "policy", o: Options{Asked: Asked{Policy: "x"}}, can: none, bad: "skep.dev/sandbox"},
		{name: "restore", o: Options{Asked: Asked{Restore: "x"}}, can: none, bad: "skep.dev/sandbox"},
		{name: "pool", o: Options{Asked: Asked{Pool: "x"}}, can: none, bad: "skep.dev/sandbox"},
		{name: "diffs", o: Options{Asked: Asked{Diffs: "x"}}, can: none, bad: "skep.dev/sandbox"},
		{name: "working set", o: Options{Asked: Asked{WorkingSet: "x"}}, can: none, bad: "skep.dev/sandbox"},
		{name: "hook", o: Options{Asked: Asked{Hook: "x"}}, can: none, bad: "skep.dev/sandbox"},
		{name: "switched off, but asked for", o: Options{Asked: Asked{Hook: "x"}}, can: can, off: true, bad: "--snapshots=false"},
		{name: "pool without restores", o: Options{Asked: Asked{Pool: "x"}}, can: can, bad: "skep.dev/snapshot-restore: auto"},
		{name: "pool with restores", o: Options{Restore: true, Asked: Asked{Pool: "x"}}, can: can},
		{name: "no differences", o: Options{Asked: Asked{Diffs: "x"}}, can: can, bad: "no differences"},
		{name: "differences", o: Options{Asked: Asked{Diffs: "x"}}, can: paging},
		{name: "no recording", o: Options{Restore: true, Asked: Asked{WorkingSet: "x"}}, can: can, bad: "no working sets"},
		{name: "a mode that records nothing", o: Options{Restore: true, Mode: sandbox.RestoreEager, Asked: Asked{WorkingSet: "x"}}, can: paging, mode: sandbox.RestoreEager, bad: "needs no working set"},
		{name: "no restores to record", o: Options{Asked: Asked{WorkingSet: "x"}}, can: paging, bad: "needs no working set"},
		{name: "recording", o: Options{Restore: true, Asked: Asked{WorkingSet: "x"}}, can: paging},
	} {
		got, err := tt.o.Check("d", tt.can, !tt.off)
		switch {
		case tt.bad == "" && err != nil, err == nil && got.Mode != tt.mode, err == nil && (tt.off || !tt.can.Snapshot) && got.Restore:
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		case tt.bad != "" && (err == nil || !strings.Contains(err.Error(), tt.bad) || !strings.HasPrefix(err.Error(), "annotation x: ")):
			t.Errorf("%s: %v, want one with %q", tt.name, err, tt.bad)
		}
	}
}

func FuzzAnnotations(f *testing.F) {
	for _, s := range []string{"after-n=10", "auto", "pager", "SIGUSR2", "/path", "=", "after-n=\x00", "/a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePolicy(s); err == nil {
			if again, err := ParsePolicy(p.String()); err != nil || again.String() != p.String() {
				t.Errorf("policy %q: %v, %v", s, again, err)
			}
		}
		if p, err := ParsePool(s); err == nil && p.Size(time.Now(), nil) > MaxPool {
			t.Errorf("pool %q", s)
		}
		if path, err := ParsePath(s); err == nil && strings.ContainsAny(path, " \r\n") {
			t.Errorf("path %q", s)
		}
		if n, err := ParseDiffs(s); err == nil && (n < 0 || n > MaxDiffs) {
			t.Errorf("differences %q", s)
		}
		_ = new(Options).SetRestore(s)
		_, _ = ParseSignal(s)
	})
}

func TestStages(t *testing.T) {
	t.Parallel()
	p, err := ParsePolicy("after-ready,after-n=10,at-scale-down")
	if err != nil || p.String() != "after-ready,after-n=10,at-scale-down" {
		t.Fatalf("%v, %v", p, err)
	}
	for _, tt := range []struct {
		s    Situation
		save bool
		next uint64
	}{
		{Situation{Moment: AtReady}, true, 0},
		{Situation{Moment: AtResponse, Responses: 20}, false, 0},
		{Situation{Moment: AtReady, Generation: 1}, false, 10},
		{Situation{Moment: AtResponse, Responses: 10, Generation: 1}, true, 11},
		{Situation{Moment: AtEnd, Generation: 1}, false, 10},
		{Situation{Moment: AtEnd, Generation: 2}, true, 0},
		{Situation{Moment: AtEnd, Generation: 3}, false, 0},
		{Situation{Moment: AtEnd, Generation: -1}, false, 0},
	} {
		if got, next := p.Save(tt.s), p.Next(tt.s); got != tt.save || next != tt.next {
			t.Errorf("%+v: %v, next %d; want %v, %d", tt.s, got, next, tt.save, tt.next)
		}
	}
	for _, bad := range []string{"after-ready,after-ready", "off,after-ready", "after-ready,", ",", "after-n=1,after-n=2,after-n=3,after-n=4,after-n=5"} {
		if _, err := ParsePolicy(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	// One that stands alone is for booted instances.
	for _, name := range PolicyNames() {
		if name == "after-n" {
			name = "after-n=1"
		}
		p, err := ParsePolicy(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []Moment{AtReady, AtResponse, AtEnd} {
			if p.Save(Situation{Moment: m, Responses: 9, Generation: 1}) {
				t.Errorf("%s: a restored instance is saved", name)
			}
		}
	}
}
