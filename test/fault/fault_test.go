// Package fault kills a working daemon again and again and counts what it
// lost and what it left.
package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/test/skeptest"
)

// patience is for what takes a moment; nothing is measured with it.
const patience = time.Minute

// world is a Skep under test and what is known of it.
type world struct {
	*skeptest.Skep
	t        *testing.T
	rnd      *rand.Rand
	services []*model
	before   []string // what was on the machine when the daemon died

	lost, leaked int
	answered     atomic.Int64
}

// TestKill is the daemon's promise: whatever the moment at which it dies, no
// acknowledged change is lost and nothing is left on the machine.
func TestKill(t *testing.T) {
	w := newWorld(t)
	kills := number(t, "SKEP_FAULT_KILLS", 30)
	for n := range kills {
		if w.rnd.IntN(4) == 0 {
			w.upAndDie(time.Duration(w.rnd.Int64N(int64(1500 * time.Millisecond))))
		} else {
			w.up()
			w.checkOrphans()
			w.checkServices()
			w.load(time.Duration(w.rnd.Int64N(int64(5*time.Second))), w.Kill)
		}
		w.note()
		t.Logf("%d of %d kills: lost=%d leaked=%d", n+1, kills, w.lost, w.leaked)
	}
	w.up()
	w.checkOrphans()
	w.converge()
	w.stop()
	t.Logf("kills=%d answered=%d lost=%d leaked=%d", kills, w.answered.Load(), w.lost, w.leaked)
}

// TestTerminate is the same for SIGTERM, after which nothing is left at once.
func TestTerminate(t *testing.T) {
	w := newWorld(t)
	ends := number(t, "SKEP_FAULT_TERMS", 8)
	for n := range ends {
		if n > 0 && n%4 == 0 {
			w.upAndStop(time.Duration(w.rnd.Int64N(int64(1500 * time.Millisecond))))
		} else {
			w.up()
			w.checkServices()
			w.load(time.Duration(w.rnd.Int64N(int64(4*time.Second))), w.Stop)
		}
		w.checkNothingLeft()
		t.Logf("%d of %d ends: lost=%d leaked=%d", n+1, ends, w.lost, w.leaked)
	}
	w.up()
	w.converge()
	w.stop()
	t.Logf("terms=%d answered=%d lost=%d leaked=%d", ends, w.answered.Load(), w.lost, w.leaked)
}

func newWorld(t *testing.T) *world {
	testenv.Root(t)
	if testing.Short() {
		t.Skip("-short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("/tmp", "skep-fault-") // t.TempDir() is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(number(t, "SKEP_FAULT_SEED", int(time.Now().UnixNano()%1e9)))
	t.Logf("SKEP_FAULT_SEED=%d", seed)
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp) // the daemon's temporary files count, too
	binary, err := skeptest.Build(ctx, filepath.Join(dir, "skep"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, seed)), Skep: &skeptest.Skep{
		Binary: binary, Dir: dir, Args: []string{"--sandbox", "gvisor", "--idle-after", "1s", "--drain-timeout", "20s", "--snapshot-pool", "1"},
	}}
	t.Cleanup(func() {
		_ = w.Kill()
		if t.Failed() {
			t.Logf("the end of skep's log:\n%s", w.LogTail())
			keep := dir + ".log"
			if b, err := os.ReadFile(w.LogPath()); err == nil && os.WriteFile(keep, b, 0o600) == nil {
				t.Logf("all of it is in %s", keep)
			}
		}
		_ = os.RemoveAll(dir)
	})
	w.up()
	root, err := skeptest.Root()
	if err != nil {
		t.Fatal(err)
	}
	r, err := w.Run(ctx, "image", "build", filepath.Join(root, "functions", "hello", "go"), "--name", "hello")
	if err != nil {
		t.Fatal(err)
	}
	for i, driver := range []string{"gvisor", "runc", "gvisor", "runc", "gvisor", "qemu"} {
		w.services = append(w.services, &model{
			name: fmt.Sprintf("f%d-%s", i, driver), driver: driver, image: strings.TrimSpace(r.Stdout), maybe: []int{absent},
		})
	}
	w.stop()
	return w
}

func number(t *testing.T, env string, byDefault int) int {
	s := os.Getenv(env)
	if s == "" {
		return byDefault
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", env, err)
	}
	return n
}

func (w *world) up() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.Up(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// upAndDie kills the daemon while it starts.
func (w *world) upAndDie(after time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	if err := w.Up(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatal(err)
	}
	_ = w.Kill()
}

// upAndStop asks the daemon to end while it starts.
func (w *world) upAndStop(after time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	up := make(chan struct{})
	go func() {
		defer close(up)
		_ = w.Up(ctx)
	}()
	began := time.Now()
	for !w.Running() || time.Since(began) < after {
		time.Sleep(time.Millisecond)
	}
	if err := w.Stop(); err != nil {
		w.t.Errorf("a daemon that was asked to end after %s, while it started: %v", after, err)
	}
	cancel()
	<-up
}

// stop ends the daemon well, after which nothing may be left.
func (w *world) stop() {
	w.t.Helper()
	if err := w.Stop(); err != nil {
		w.t.Fatal(err)
	}
	w.checkNothingLeft()
	w.checkSnapshots()
}

// load changes and calls all services at once, and ends the daemon meanwhile.
func (w *world) load(d time.Duration, end func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	api, err := client(w.Endpoints.Kubeconfig)
	if err != nil {
		w.t.Fatal(err)
	}
	var work sync.WaitGroup
	for _, m := range w.services {
		rnd := rand.New(rand.NewPCG(w.rnd.Uint64(), w.rnd.Uint64()))
		work.Go(func() {
			for ctx.Err() == nil {
				m.change(ctx, api, rnd)
				pause(ctx, rnd, 3*time.Second)
				if v, ready, err := versionOf(ctx, api, m.name); err == nil && ready {
					m.ready(v)
				}
			}
		})
		work.Go(func() {
			c := w.Client()
			defer c.CloseIdleConnections()
			rnd := rand.New(rand.NewPCG(1, 2))
			for ctx.Err() == nil {
				if resp, _, err := w.Get(ctx, c, m.name, "/"); err == nil && resp.StatusCode == http.StatusOK {
					w.answered.Add(1)
				}
				pause(ctx, rnd, 300*time.Millisecond)
			}
		})
	}
	t := time.NewTimer(d)
	<-t.C
	if err := end(); err != nil {
		w.t.Errorf("the daemon did not end well: %v", err)
	}
	cancel()
	work.Wait()
}

func (w *world) lose(err error) {
	w.lost++
	w.t.Errorf("lost: %v", err)
}

func (w *world) leak(what string) {
	w.leaked++
	w.t.Errorf("leaked: %s", what)
}

// checkServices compares the services with what was acknowledged, and calls
// those that were ready before.
func (w *world) checkServices() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	api, err := client(w.Endpoints.Kubeconfig)
	if err != nil {
		w.t.Fatal(err)
	}
	answers := make([]error, len(w.services))
	var work sync.WaitGroup
	for i, m := range w.services {
		version, _, err := versionOf(ctx, api, m.name)
		if err == nil {
			err = m.found(version)
		}
		if err != nil {
			w.lose(err)
			continue
		}
		if may := m.mayAnswer(); m.exists() && len(may) > 0 && (m.driver != "qemu" || w.rnd.IntN(4) == 0) {
			work.Go(func() { answers[i] = w.call(ctx, m.name, may) })
		}
	}
	work.Wait()
	for _, err := range answers {
		if err != nil {
			w.lose(fmt.Errorf("was ready before: %w", err))
		}
	}
}

// call requests a service, which must answer as one of the versions.
func (w *world) call(ctx context.Context, name string, versions []int) error {
	c := w.Client()
	defer c.CloseIdleConnections()
	resp, body, err := w.Get(ctx, c, name, "/")
	if err != nil {
		return fmt.Errorf("service %s: %w", name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("service %s: %s: %s", name, resp.Status, body)
	}
	for _, v := range versions {
		if body == "Hello, "+target(v)+"!\n" {
			return nil
		}
	}
	return fmt.Errorf("service %s: answered %q, want one of the versions %v", name, body, versions)
}

// converge waits until every service is ready in its acknowledged version.
func (w *world) converge() {
	w.t.Helper()
	w.checkServices()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	api, err := client(w.Endpoints.Kubeconfig)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range w.services {
		if !m.exists() {
			continue
		}
		for ready := false; !ready; {
			var v int
			if v, ready, err = versionOf(ctx, api, m.name); ready && err == nil {
				err = w.call(ctx, m.name, []int{v})
			}
			if err != nil || ctx.Err() != nil {
				w.lose(fmt.Errorf("service %s did not become ready again: %w", m.name, errors.Join(err, ctx.Err())))
				break
			}
			pause(ctx, w.rnd, 50*time.Millisecond)
		}
	}
}

// everything lists all that the node has on the machine now.
func (w *world) everything() []string {
	w.t.Helper()
	all, err := skeptest.Leftovers(w.Dir, w.Endpoints.NodeID)
	if err != nil {
		w.t.Fatal(err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/skep-" + w.Endpoints.NodeID + "/*")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, g := range groups {
		if fi, err := os.Stat(g); err == nil && fi.IsDir() {
			all = append(all, "cgroup "+g)
		}
	}
	temporary, err := filepath.Glob(filepath.Join(w.Dir, "tmp", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return append(all, temporary...)
}

// note notes what the dead daemon left.
func (w *world) note() { w.before = w.everything() }

// checkSnapshots checks, after a daemon that ended well, that every folder of
// a snapshot is one that the journal knows to be whole.
func (w *world) checkSnapshots() {
	w.t.Helper()
	dir := filepath.Join(w.Dir, "snapshots", "local")
	folders, err := os.ReadDir(dir)
	if err != nil {
		w.t.Error(err)
		return
	}
	j, err := journal.Open(context.Background(), filepath.Join(w.Dir, "node.db"))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer j.Close()
	records, err := j.List(context.Background(), "snapshot")
	if err != nil {
		w.t.Error(err)
	}
	whole := map[string]bool{}
	for _, r := range records {
		var rec struct{ Whole bool }
		if err := json.Unmarshal(r.Data, &rec); err != nil || !rec.Whole {
			w.leak(fmt.Sprintf("record of half a snapshot %s: %s (%v)", r.ID, r.Data, err))
		}
		whole[r.ID] = true
	}
	for _, f := range folders {
		if !whole[f.Name()] {
			w.leak("folder of a snapshot without a record: " + f.Name())
		}
	}
}

// checkOrphans checks that all of it was removed by the new one.
func (w *world) checkOrphans() {
	w.t.Helper()
	now := w.everything()
	for _, x := range w.before {
		parent := strings.HasPrefix(x, "cgroup ") && strings.HasSuffix(x, "skep-"+w.Endpoints.NodeID)
		if parent || x == "file "+filepath.Join(w.Dir, "run", "networks", "lock") {
			continue // the new one's, too
		}
		if slices.Contains(now, x) {
			w.leak("still there after a restart: " + x)
		}
	}
	w.before = nil
}

// checkNothingLeft checks the machine after a daemon that ended well. A
// process that was killed may take a moment to go.
func (w *world) checkNothingLeft() {
	w.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	left := w.everything()
	for len(left) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		left = w.everything()
	}
	for _, x := range left {
		w.leak(x)
	}
}
