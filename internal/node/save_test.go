package node

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/node/snapshots"
)

// The ways in which the making of a snapshot fails.

func diskFull(context.Context, *fragileBox) error {
	return fmt.Errorf("write memory: %w", syscall.ENOSPC)
}

func neverEnds(ctx context.Context, _ *fragileBox) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// dies is what a driver does that cannot have a sandbox go on.
func dies(ctx context.Context, b *fragileBox) error {
	return errors.Join(errors.New("it does not go on"), diesSilently(ctx, b))
}

func diesSilently(ctx context.Context, b *fragileBox) error {
	err := b.Signal(ctx, syscall.SIGKILL)
	if err == nil {
		_, err = b.Wait(ctx)
	}
	return err
}

// diesUnseen has its end be known only when Save has returned.
func diesUnseen(ctx context.Context, b *fragileBox) error {
	if err := b.Signal(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	return errors.New("it does not answer any more")
}

func policy(t *testing.T, name string) snapshots.Policy {
	t.Helper()
	p, err := snapshots.ParsePolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSaveFails: whatever happens when a snapshot is made of an instance that
// has become ready, there is an instance, and the next start boots.
func TestSaveFails(t *testing.T) {
	t.Parallel()
	hook := snapshots.Hook{Path: "/hook"}
	missing := snapshots.Hook{Path: "/missing"}
	for _, tt := range []struct {
		name           string
		before, after  snapshots.Hook
		save           func(context.Context, *fragileBox) error
		creates, saves int // for the first launch
		works, dies    bool
	}{
		{name: "works", before: hook, after: hook, creates: 1, saves: 1, works: true},
		{name: "disk full", save: diskFull, before: hook, after: hook, creates: 1, saves: 1},
		{name: "never ends", save: neverEnds, creates: 1, saves: 1},
		{name: "dies", dies: true, save: dies, creates: 2, saves: 1},
		{name: "dies silently", dies: true, save: diesSilently, creates: 2, saves: 1},
		{name: "dies unseen", dies: true, save: diesUnseen, creates: 2, saves: 1},
		{name: "before hook", before: missing, creates: 1, saves: 0},
		{name: "after hook", after: missing, creates: 2, saves: 1},
		{name: "disk full and after hook", save: diskFull, after: missing, creates: 2, saves: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.Node.saveTimeout = 100 * time.Millisecond
			if tt.dies {
				l.Node.saveTimeout, l.Node.endPatience = patience, patience // it ends by itself
			}
			l.fragile.save = tt.save
			o := snapshots.Options{Policy: snapshots.DefaultPolicy, Restore: true, Always: true, Before: tt.before, After: tt.after}
			l.start(t, o)
			if c, s := l.counts(); c != tt.creates || s != tt.saves {
				t.Errorf("%d sandboxes and %d saves, want %d and %d", c, s, tt.creates, tt.saves)
			}
			kind := Booted
			if tt.works {
				kind = Restored
				l.wantTold(t)
			} else {
				l.wantTold(t, snapshots.ReasonFailed)
			}
			// The next one is not kept up by it, either: it is too early to try again.
			if got := l.start(t, o).Kind(); got != kind {
				t.Errorf("the next start: %s, want %s", got, kind)
			}
			if _, s := l.counts(); s != tt.saves {
				t.Errorf("%d saves, want %d: the next start tried again at once", s, tt.saves)
			}
			if tt.works {
				return
			}
			l.fragile.set(func() { l.fragile.save = nil })
			l.clock.pass(time.Minute)
			o.Before, o.After = snapshots.Hook{}, snapshots.Hook{}
			l.start(t, o)
			if got := l.start(t, o).Kind(); got != Restored {
				t.Errorf("after the pause, and a snapshot that worked: %s", got)
			}
		})
	}
}

// TestRestoreFails: an instance boots within the same launch.
func TestRestoreFails(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*fragile){
		"prepare": func(d *fragile) { d.prepare = errors.New("damaged") },
		"start":   func(d *fragile) { d.start = errors.New("damaged") },
		"hook":    func(d *fragile) { d.hook = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			o := snapshots.Options{Policy: snapshots.DefaultPolicy, Restore: true, Always: true, After: snapshots.Hook{Path: "/hook"}}
			l.start(t, o)
			if got := l.start(t, o).Kind(); got != Restored {
				t.Fatalf("the second start: %s %v", got, l.told())
			}
			l.fragile.set(func() { fail(l.fragile) })
			i := l.start(t, o)
			if p := i.Phases(); i.Kind() != Booted || p[0].Name != "restore-failed" {
				t.Errorf("%s, phases %v", i.Kind(), p)
			}
			l.wantTold(t, snapshots.ReasonFailed)
		})
	}
}

// TestSaveNowFails: an instance that has had requests goes on, and is tried
// again after a pause; if it does not, that is said.
func TestSaveNowFails(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	o := snapshots.Options{Policy: policy(t, "after-n=1"), Restore: true, Always: true}
	l.fragile.save = diskFull
	i := l.start(t, o)
	if at := i.SaveAfter(); !at.IsZero() {
		t.Errorf("nothing has failed: not before %s", at)
	}
	if saved, err := i.SaveNow(t.Context(), snapshots.AtResponse, 1); saved || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("disk full: %v, %v", saved, err)
	}
	wantServes(t, i)
	if wait := i.SaveAfter().Sub(l.clock.Now()); wait <= 0 || wait > time.Minute {
		t.Errorf("the next try is in %s", wait)
	}
	l.fragile.set(func() { l.fragile.save = nil })
	if saved, err := i.SaveNow(t.Context(), snapshots.AtResponse, 1); saved || !errors.Is(err, snapshots.ErrNotNow) {
		t.Errorf("too early: %v, %v", saved, err)
	}
	if err := i.Save(t.Context(), true); err != nil { // as `skep snapshot create` does
		t.Errorf("forced: %v", err)
	}
	l.clock.pass(time.Minute)
	if saved, err := i.SaveNow(t.Context(), snapshots.AtResponse, 1); !saved || err != nil {
		t.Errorf("there is one by now: %v, %v", saved, err)
	}
	l.Node.endPatience = patience
	for name, end := range map[string]func(context.Context, *fragileBox) error{"dies": dies, "silently": diesSilently, "unseen": diesUnseen} {
		i := l.start(t, o)
		l.fragile.set(func() { l.fragile.save = end })
		if err := i.Save(t.Context(), true); !errors.Is(err, ErrEndedBySnapshot) {
			t.Errorf("%s: %v", name, err)
		}
		<-i.Done()
		var s *StartError
		if err := i.ExitError(); !errors.As(err, &s) || s.Reason != ReasonSnapshot {
			t.Errorf("%s: ended with %v", name, err)
		}
		l.fragile.set(func() { l.fragile.save = nil })
	}
}

// TestRefineFails: a snapshot that cannot be refined is still restored from,
// and instances do not try again one after the other.
func TestRefineFails(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	o := snapshots.Options{Policy: policy(t, "after-ready,after-n=1"), Restore: true, Always: true}
	l.start(t, o)
	l.fragile.set(func() { l.fragile.save = diskFull })
	for _, want := range []error{syscall.ENOSPC, snapshots.ErrNotNow} {
		i := l.start(t, o)
		if i.Kind() != Restored {
			t.Fatal(i.Kind())
		}
		if _, err := i.SaveNow(t.Context(), snapshots.AtResponse, 1); !errors.Is(err, want) {
			t.Errorf("refine: %v, want %v", err, want)
		}
		wantServes(t, i)
	}
}
