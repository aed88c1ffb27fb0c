package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
)

func TestCreateAndFind(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	l.find("a", "")
	l.save("a", "one")
	l.find("a", "one").Release()
	if err := l.Create(t.Context(), want("a"), CreateOptions{}, content("two")); !errors.Is(err, ErrHave) {
		t.Errorf("a second one: %v", err)
	}
	first := l.stored("a")
	old := l.find("a", "one")
	if err := l.Create(t.Context(), want("a"), CreateOptions{Force: true}, content("two")); err != nil {
		t.Fatal(err)
	}
	if old.Current() {
		t.Error("a superseded snapshot is current")
	}
	if _, err := os.Stat(old.Image.File("state")); err != nil {
		t.Errorf("a snapshot in use is gone: %v", err)
	}
	old.Release()
	l.find("a", "two").Release()
	if second := l.stored("a"); second == first {
		t.Error("the second has the first's ID")
	}
	eventually(t, "the first is gone", func() bool {
		_, err := l.Store().Describe(t.Context(), first)
		return errors.Is(err, snapshot.ErrNotFound) && l.folders() == 1
	})
}

func TestAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("a", "one")
	l.stored("a")
	l.shut()
	// The files are there.
	l = open(t, dir)
	l.find("a", "one").Release()
	l.shut()
	// Without the files, from the store.
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	if l.events(ReasonDamaged) != 1 {
		t.Error("missing files are not reported")
	}
	l.find("a", "one").Release()
	l.shut()
	// Not stored before the end: at the next start.
	l = open(t, dir)
	l.save("b", "two")
	l.shut()
	l = open(t, dir)
	l.stored("b")
	l.find("b", "two")
}

// TestCrash opens what a process left that was killed while it made a
// snapshot, at each step.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("whole", "one")
	l.stored("whole")
	ctx := t.Context()
	m := want("half").manifest()
	m.Version, m.Created = snapshot.ManifestVersion, time.Now().UTC()
	for _, step := range []string{"recorded", "made", "written"} {
		c, err := l.newCopy(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		switch step {
		case "recorded":
			err = os.RemoveAll(l.Catalog.dir(c))
		case "written":
			err = content("half")(ctx, filepath.Join(l.Catalog.dir(c), imageDir), false)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// One that the journal does not know, and one from before a power failure.
	if err := os.MkdirAll(filepath.Join(dir, "local", "unknown", "image"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := l.newCopy(ctx, m)
	if err == nil {
		err = content("unsynced")(ctx, filepath.Join(l.Catalog.dir(c), imageDir), false)
	}
	if err == nil {
		err = l.examine(c)
	}
	c.rec.Whole, c.rec.Boot = true, "another boot"
	if err == nil {
		err = l.Catalog.record(ctx, c)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.shut()
	l = open(t, dir)
	if n := l.folders(); n != 1 {
		t.Errorf("%d folders are left, want the whole snapshot's", n)
	}
	records, err := l.j.List(ctx, kindCopy)
	if err != nil || len(records) != 1 {
		t.Errorf("%d records are left, %v", len(records), err)
	}
	l.find("half", "")
	l.find("whole", "one")
}

func TestDamaged(t *testing.T) {
	t.Parallel()
	for name, hurt := range map[string]func(path string) error{
		"changed": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 700<<10)
			return err
		},
		"truncated": func(p string) error { return os.Truncate(p, 100) },
		"missing":   os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t, t.TempDir())
			l.save("a", "one")
			l.stored("a")
			u := l.find("a", "one")
			u.Release()
			if err := hurt(u.Image.File("memory")); err != nil {
				t.Fatal(err)
			}
			if u.Current() {
				t.Error("damaged files are current")
			}
			u = l.find("a", "one") // from the store
			defer u.Release()
			// A monitor maps it as another user.
			if info, err := os.Stat(u.Image.File("memory")); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("the fetched memory: %v, %v", info.Mode(), err)
			}
			if l.events(ReasonDamaged) != 1 {
				t.Errorf("events: %v", l.all)
			}
		})
	}
}

func TestDamagedStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("a", "one")
	id := l.stored("a")
	l.shut()
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(filepath.Join(dir, "store", "chunks"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			err = os.Truncate(p, 3)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	l.find("a", "")
	eventually(t, "quarantined", func() bool {
		_, err := l.Store().Describe(t.Context(), id)
		return errors.Is(err, snapshot.ErrNotFound) && l.events(ReasonDamaged) >= 2
	})
	// Another one takes its place at once.
	if err := l.Create(t.Context(), want("a"), CreateOptions{}, content("two")); err != nil {
		t.Error(err)
	}
	l.find("a", "two")
}

func TestForeign(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*snapshot.Requirements){
		"version": func(r *snapshot.Requirements) { r.Driver.Version = "2" },
		"cpu":     func(r *snapshot.Requirements) { r.CPU.Features = []string{"a"} },
		"image":   func(r *snapshot.Requirements) { r.RootImage = "sha256:2" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l := open(t, dir)
			l.save("a", "one")
			id := l.stored("a")
			for range 2 { // the files, and what is in the store
				if u := l.Find(t.Context(), want("a", edit), false); u != nil {
					t.Fatal("a foreign snapshot is used")
				}
			}
			if l.events(ReasonForeign) != 1 {
				t.Errorf("told %d times, want once", l.events(ReasonForeign))
			}
			if _, err := l.Store().Describe(t.Context(), id); err != nil {
				t.Errorf("it is of use elsewhere: %v", err)
			}
			if err := l.Create(t.Context(), want("a", edit), CreateOptions{}, content("mine")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestForeignFormat: a later version's manifest, layer or chunk is not used,
// told, and left to those who know it.
func TestForeignFormat(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"manifest", "layer", "chunk"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l := open(t, dir)
			l.save("a", "one")
			id := l.stored("a")
			l.shut()
			if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
				t.Fatal(err)
			}
			id = ofVersion(t, filepath.Join(dir, "store"), id, what)
			before := objects(t, dir, "")
			l = open(t, dir)
			damaged := l.events(ReasonDamaged) // of the files that are gone
			for range 2 {
				l.find("a", "")
			}
			if n := l.events(ReasonForeign); n != 1 || l.events(ReasonDamaged) != damaged {
				t.Errorf("told %d times, want once: %v", n, l.all)
			}
			// One of our own is made beside it.
			if err := l.Create(t.Context(), want("a"), CreateOptions{}, content("two")); err != nil {
				t.Fatal(err)
			}
			l.stored("a")
			l.find("a", "two").Release()
			if err := l.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if stats, err := l.Collect(t.Context()); err != nil || what != "chunk" && len(stats.Foreign) != 1 {
				t.Errorf("collect: %+v, %v", stats, err)
			}
			after := objects(t, dir, "")
			for name := range before {
				if !after[name] {
					t.Errorf("%s is gone", name)
				}
			}
			// It goes with its service.
			l.Forget("ns", "s-a")
			eventually(t, "the manifests to go", func() bool { return len(objects(t, dir, "manifests")) == 0 })
			if _, err := l.Store().Describe(t.Context(), id); !errors.Is(err, snapshot.ErrNotFound) {
				t.Error(err)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var mu sync.Mutex
	l := open(t, t.TempDir(), func(c *Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	later := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	boom := errors.New("boom")
	if err := l.Create(t.Context(), want("a"), CreateOptions{}, func(context.Context, string, bool) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Create: %v", err)
	}
	if n := l.folders(); n != 0 {
		t.Errorf("a failed save left %d folders", n)
	}
	if err := l.Create(t.Context(), want("a"), CreateOptions{}, content("one")); !errors.Is(err, ErrNotNow) {
		t.Errorf("right after a failure: %v", err)
	}
	later(firstPause)
	l.save("a", "one")
	l.stored("a")
	// It does not restore: first it is fetched again, at last it is removed.
	for n := range giveUp {
		l.find("a", "one").Failed(boom)
		l.find("a", "")
		later(maxPause)
		if n < giveUp-1 && l.events(ReasonFailed) != n+2 {
			t.Errorf("%d events", l.events(ReasonFailed))
		}
	}
	l.find("a", "")
}

func TestWorkingSet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("a", "one")
	before := l.stored("a")
	u := l.Find(t.Context(), want("a"), true)
	if u == nil || !u.Record {
		t.Fatal("the first is not asked to record")
	}
	if second := l.Find(t.Context(), want("a"), true); second.Record {
		t.Error("two record")
	} else {
		second.Release()
	}
	err := u.Recorded(t.Context(), func(_ context.Context, path string) error { return os.WriteFile(path, []byte("set"), 0o600) })
	if err != nil {
		t.Fatal(err)
	}
	if u.Current() {
		t.Error("current without the working set")
	}
	u.Release()
	after := l.stored("a")
	m, err := l.Store().Describe(t.Context(), after)
	if err != nil || before == after || m.WorkingSet != roleWorkingSet {
		t.Errorf("manifest %+v, %v", m, err)
	}
	check := func() *Use {
		u := l.Find(t.Context(), want("a"), true)
		if u == nil || u.Record {
			t.Fatalf("found %+v", u)
		}
		if b, err := os.ReadFile(u.Image.WorkingSet); err != nil || string(b) != "set" {
			t.Errorf("working set %q, %v", b, err)
		}
		return u
	}
	check().Release()
	l.shut()
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	u = check()
	if u.Fitted(true) || !u.Fitted(false) {
		t.Error("a working set that did not fit is not recorded anew")
	}
	u.Release()
	if again := l.Find(t.Context(), want("a"), true); again == nil || !again.Record {
		t.Error("an outdated working set is not recorded anew")
	} else {
		again.Release()
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var mu sync.Mutex
	l := open(t, t.TempDir(), func(c *Config) {
		c.MaxCopies = 90 << 10 // of about 32 KiB each
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Second); return now }
	})
	for n := range 5 {
		key := fmt.Sprint(n)
		l.save(key, "text"+key)
		l.stored(key)
	}
	held := l.find("4", "text4")
	l.find("0", "text0").Release() // comes back from the store
	l.find("4", "text4").Release()
	held.Release()
	eventually(t, "within the limit", func() bool {
		var sum int64
		for _, n := range l.Copies() {
			sum += n
		}
		return sum <= 90<<10 && l.folders() == len(l.Copies())
	})
}

func TestForget(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	l.save("a", "one")
	id := l.stored("a")
	l.save("b", "two") // perhaps on its way into the store
	u := l.find("a", "one")
	l.Forget("ns", "s-a")
	l.Forget("ns", "s-b")
	l.find("a", "")
	l.find("b", "")
	if _, err := os.Stat(u.Image.File("state")); err != nil {
		t.Errorf("gone while in use: %v", err)
	}
	u.Release()
	eventually(t, "nothing is left", func() bool {
		_, err := l.Store().Describe(t.Context(), id)
		all, listErr := l.Store().List(t.Context())
		return errors.Is(err, snapshot.ErrNotFound) && listErr == nil && len(all) == 0 && l.folders() == 0
	})
}

// A manifest from another machine must not name files outside.
func TestHostileRole(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	m := want("a").manifest()
	cr, err := l.Store().Begin(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cr.WriteLayer(t.Context(), "../../evil", strings.NewReader("evil"), 4, snapshot.LayerOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cr.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.find("a", "")
	if _, err := os.Stat(filepath.Join(l.dir, "evil")); err == nil || l.folders() != 0 {
		t.Error("it wrote outside, or left its folder")
	}
}
