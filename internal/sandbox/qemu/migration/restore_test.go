package migration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox/qemu/launcher"
	"github.com/skep-dev/skep/internal/sandbox/qemu/migration"
	"github.com/skep-dev/skep/internal/testenv"
)

// mapped starts a clone whose memory is a file, copy on write.
func mapped(ctx context.Context, t testing.TB, s *saved, change func(*options), stream func(io.Writer) error) *machine {
	t.Helper()
	ours, theirs := socketPair(t)
	o := options{
		memory:   fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=off", ramSize, s.memory),
		incoming: theirs,
	}
	if change != nil {
		change(&o)
	}
	m := launch(ctx, t, o)
	m.capability(ctx, "x-ignore-shared")
	m.receive(ctx)
	if err := stream(ours); err != nil {
		t.Fatalf("%v: %s", err, &m.stderr)
	}
	m.awaitResume(ctx)
	return m
}

func writeState(s *migration.State) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := s.WriteTo(w)
		return err
	}
}

// paged is a clone whose memory comes from a Source.
type paged struct {
	*machine
	source *migration.Source
	served chan error
}

// page starts one; change may alter the configuration.
func page(ctx context.Context, t testing.TB, s *saved, change func(*migration.Config)) *paged {
	t.Helper()
	p := pageAs(ctx, t, s, nil, change)
	p.awaitResume(ctx)
	return p
}

// pageAs does it with changed options, and does not wait.
func pageAs(ctx context.Context, t testing.TB, s *saved, as func(*options), change func(*migration.Config)) *paged {
	t.Helper()
	ours, theirs := socketPair(t)
	o := options{
		memory:   fmt.Sprintf("memory-backend-ram,id=mem,size=%d", ramSize),
		incoming: theirs,
	}
	if as != nil {
		as(&o)
	}
	m := launch(ctx, t, o)
	cfg := migration.Config{
		State: s.state, Block: "mem", Memory: s.image(t), Conn: ours, Exited: m.exited,
		Kill: func(context.Context) error { return ignoreDone(m.cmd.Process.Kill()) },
	}
	if change != nil {
		change(&cfg)
	}
	src, err := migration.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.capability(ctx, "postcopy-ram")
	m.receive(ctx)
	p := &paged{m, src, make(chan error, 1)}
	go func() { p.served <- src.Serve(ctx) }()
	t.Cleanup(func() {
		m.kill()
		p.served <- <-p.served // it has ended before its files are closed
	})
	return p
}

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// end waits for Serve's result.
func (p *paged) end(ctx context.Context) error {
	p.t.Helper()
	select {
	case err := <-p.served:
		p.served <- err
		return err
	case <-ctx.Done():
		p.t.Fatalf("Serve goes on: %v", ctx.Err())
		return nil
	}
}

// record makes a working set of what some pages' touching needs.
func record(ctx context.Context, t testing.TB, s *saved) (string, *paged) {
	t.Helper()
	p := page(ctx, t, s, func(c *migration.Config) { c.Record = true })
	p.ask(ctx, "touch 500", "touched")
	rec := p.source.StopRecording()
	if n := len(rec.Pages); n < 500 || n > 5000 {
		t.Errorf("%d pages are recorded for a touch of 500", n)
	}
	path := filepath.Join(t.TempDir(), "set")
	if err := pager.WriteWorkingSet(ctx, path, rec, s.image(t)); err != nil {
		t.Fatal(err)
	}
	return path, p
}

func openSet(t testing.TB, path string) *pager.WorkingSet {
	t.Helper()
	ws, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	return ws
}

func TestRestoreMapped(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, time.Minute)
	m := mapped(ctx, t, s, nil, writeState(s.state))
	s.check(ctx, t, m)
}

// A memory of RAM takes the whole image at once.
func TestRestoreEager(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, time.Minute)
	ours, theirs := socketPair(t)
	m := launch(ctx, t, options{memory: fmt.Sprintf("memory-backend-ram,id=mem,size=%d", ramSize), incoming: theirs})
	m.capability(ctx, "x-ignore-shared")
	m.receive(ctx)
	f, err := os.Open(s.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layer, err := pager.SparseLayer(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.state.WriteIncoming(ctx, ours, migration.Memory{Block: "mem", Reader: f, Extents: layer.Extents}); err != nil {
		t.Fatal(err)
	}
	m.awaitResume(ctx)
	s.check(ctx, t, m)
}

// A clone's own state is saved as a diff, and comes back over the same base
// in every way.
func TestDiff(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, 2*time.Minute)
	m := mapped(ctx, t, s, nil, writeState(s.state))
	m.ask(ctx, "dirty 300", "dirtied")
	want := m.ask(ctx, "zero 100", "zeroed")
	m.do(ctx, "migrate-set-capabilities", object{"capabilities": []object{{"capability": "x-ignore-shared", "state": false}}}, nil)
	m.do(ctx, "migrate-set-parameters", object{"max-bandwidth": 1 << 40}, nil)
	f, err := os.Create(filepath.Join(t.TempDir(), "diff"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	diff := &saved{memory: s.memory, sum: want, disk: s.disk}
	m.save(ctx, false, func(r io.Reader) error {
		diff.state, err = migration.Split(ctx, r, migration.SplitOptions{Block: "mem", File: f, Base: s.image(t)})
		return err
	})
	m.do(ctx, "cont", nil, nil)
	if got := m.ask(ctx, "sum", "sum"); got != want {
		t.Errorf("after the save the sum is %s, want %s", got, want)
	}
	m.kill()
	layer, err := pager.SparseLayer(f)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, e := range layer.Extents {
		size += e.Length
	}
	t.Logf("the diff holds %d pages", size/4096)
	if n := size / 4096; n < 300 || n > 4000 {
		t.Errorf("the diff holds %d pages, 300 were written", n)
	}

	t.Run("over a mapped base", func(t *testing.T) {
		m := mapped(ctx, t, diff, nil, func(w io.Writer) error {
			return diff.state.WriteIncoming(ctx, w, migration.Memory{Block: "mem", Reader: f, Extents: layer.Extents})
		})
		diff.check(ctx, t, m)
	})
	t.Run("paged in layers", func(t *testing.T) {
		base, err := os.Open(s.memory)
		if err != nil {
			t.Fatal(err)
		}
		defer base.Close()
		below, err := pager.SparseLayer(base)
		if err != nil {
			t.Fatal(err)
		}
		src, err := pager.NewLayered(ramSize, layer, below)
		if err != nil {
			t.Fatal(err)
		}
		p := page(ctx, t, diff, func(c *migration.Config) { c.Memory = src })
		diff.check(ctx, t, p.machine)
		p.kill()
		if err := p.end(ctx); err != nil {
			t.Error(err)
		}
	})
}

// On demand everything comes right; with a working set little is asked for.
func TestRecordAndPrefetch(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, 2*time.Minute)
	path, p := record(ctx, t, s)
	cold := p.source.Stats()
	s.check(ctx, t, p.machine)
	if all := p.source.Stats(); all.Requests < guestMemory/4096 {
		t.Errorf("%d requests for all memory", all.Requests)
	}
	if d := p.source.Drift(); d.Ratio() != 1 {
		t.Errorf("without a set the drift is %+v", d)
	}
	p.kill()
	if err := p.end(ctx); err != nil {
		t.Error(err)
	}

	ws := openSet(t, path)
	p = page(ctx, t, s, func(c *migration.Config) { c.WorkingSet = ws })
	p.ask(ctx, "touch 500", "touched")
	p.source.StopRecording()
	warm, drift := p.source.Stats(), p.source.Drift()
	t.Logf("on demand %d requests, with %d pages ahead %d; drift %+v", cold.Requests, warm.Prefetched+warm.PreZeroed, warm.Requests, drift)
	if warm.Requests > cold.Requests/4 || warm.Prefetched < 500 || warm.PrefetchError != nil || drift.Ratio() > 0.25 {
		t.Errorf("%+v", warm)
	}
	s.check(ctx, t, p.machine)
}

// A state of devices alone will do, for a QEMU that expects nothing else, is
// an ordinary user's and is told when to go on.
func TestDevicesOnly(t *testing.T) {
	testenv.Root(t)
	s := snapshot(t)
	ctx := deadline(t, time.Minute)
	state, err := migration.ParseDevices(bytes.NewReader(s.devices), migration.Block{Name: "mem", Size: ramSize})
	if err != nil {
		t.Fatal(err)
	}
	p := pageAs(ctx, t, s, func(o *options) {
		o.board, o.args = ",suppress-vmdesc=on", []string{"-S", "-global", "migration.send-configuration=off"}
		o.start = func(c *exec.Cmd) error {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			return launcher.Start(c, launcher.Options{Userfaultfd: true})
		}
	}, func(c *migration.Config) { c.State = state })
	p.awaitMigration(ctx, "postcopy-active")
	p.do(ctx, "cont", nil, nil)
	s.check(ctx, t, p.machine)
	if err := p.source.Complete(ctx); err != nil {
		t.Fatal(err)
	}
	s.check(ctx, t, p.machine)
}

// Memory in a file that we have, too, can be saved as that of a machine that
// was booted, once it is complete.
func TestSharedMemory(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, time.Minute)
	restored := func(s *saved) (*paged, *os.File) {
		state, err := migration.ParseDevices(bytes.NewReader(s.devices), migration.Block{Name: "mem", Size: ramSize})
		if err != nil {
			t.Fatal(err)
		}
		memory := memfd(t)
		p := pageAs(ctx, t, s, func(o *options) {
			o.shared, o.board = memory, ",suppress-vmdesc=on"
			o.args = []string{"-global", "migration.send-configuration=off"}
		}, func(c *migration.Config) { c.State = state })
		p.awaitResume(ctx)
		return p, memory
	}
	p, memory := restored(s)
	again := &saved{disk: s.disk, sum: p.ask(ctx, "dirty 50", "dirtied"), memory: filepath.Join(t.TempDir(), "memory")}
	if err := p.source.Complete(ctx); err != nil {
		t.Fatalf("%v: %s", err, &p.stderr)
	}
	p.do(ctx, "stop", nil, nil)
	devices := filepath.Join(t.TempDir(), "devices")
	p.do(ctx, "xen-save-devices-state", object{"filename": devices, "live": false}, nil)
	var err error
	if again.devices, err = os.ReadFile(devices); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, ramSize)
	if _, err := memory.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(again.memory, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p.do(ctx, "cont", nil, nil)
	again.check(ctx, t, p.machine)
	p.kill()
	p, _ = restored(again)
	again.check(ctx, t, p.machine)
}

func memfd(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(ramSize); err != nil {
		t.Fatal(err)
	}
	return f
}

// Clones run from one image and one set, at the same time.
func TestClones(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, 2*time.Minute)
	path, p := record(ctx, t, s)
	p.kill()
	ws := openSet(t, path)
	var clones []*paged
	for range 3 {
		clones = append(clones, page(ctx, t, s, func(c *migration.Config) { c.WorkingSet = ws }))
	}
	var wg sync.WaitGroup
	answers := make([]string, len(clones))
	for i, c := range clones {
		wg.Go(func() {
			if i == 1 {
				c.ask(ctx, "dirty 10", "dirtied")
			}
			answers[i] = c.ask(ctx, "sum", "sum")
		})
	}
	wg.Wait()
	if answers[0] != s.sum || answers[2] != s.sum || answers[1] == s.sum {
		t.Errorf("sums %v; that of the first and the last must be %s", answers, s.sum)
	}
}

// A machine that has all its memory needs its source no more, and can be saved.
func TestComplete(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, 2*time.Minute)
	p := page(ctx, t, s, nil)
	p.ask(ctx, "touch 10", "touched")
	if err := p.source.Complete(ctx); err != nil {
		t.Fatalf("%v: %s", err, &p.stderr)
	}
	if err := p.end(ctx); err != nil {
		t.Error(err)
	}
	if st := p.source.Stats(); !st.Completed || st.Pushed == 0 {
		t.Errorf("%+v", st)
	}
	s.check(ctx, t, p.machine)
	p.do(ctx, "migrate-set-parameters", object{"max-bandwidth": 1 << 40}, nil)
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again := &saved{memory: f.Name(), sum: s.sum, disk: s.disk}
	p.do(ctx, "migrate-set-capabilities", object{"capabilities": []object{{"capability": "postcopy-ram", "state": false}}}, nil)
	p.save(ctx, false, func(r io.Reader) error {
		again.state, err = migration.Split(ctx, r, migration.SplitOptions{Block: "mem", File: f})
		return err
	})
	p.kill()
	m := mapped(ctx, t, again, nil, writeState(again.state))
	again.check(ctx, t, m)
}

// Pushed from the start, it completes by itself while the guest works.
func TestPush(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, time.Minute)
	p := page(ctx, t, s, func(c *migration.Config) { c.Push = true })
	s.check(ctx, t, p.machine)
	if err := p.end(ctx); err != nil || !p.source.Stats().Completed {
		t.Errorf("%v, %+v: %s", err, p.source.Stats(), &p.stderr)
	}
	s.check(ctx, t, p.machine)
}
