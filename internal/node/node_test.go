package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/node/logs"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/runc"
	"github.com/skep-dev/skep/internal/testenv"
)

const patience = 60 * time.Second

// The test's own executable is also the function, and a node to be killed.
func TestMain(m *testing.M) {
	if mode := os.Getenv("NODE_TEST_FUNCTION"); mode != "" {
		function(mode)
	}
	if dir := os.Getenv("NODE_TEST_OWNER"); dir != "" {
		own(dir, os.Getenv("NODE_TEST_ID"))
	}
	os.Exit(m.Run())
}

func function(mode string) {
	switch mode {
	case "exit":
		fmt.Println("boom")
		os.Exit(3)
	case "deaf":
		time.Sleep(24 * time.Hour)
	case "hog":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
			runtime.KeepAlive(all)
		}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	}
	http.HandleFunc("/hook", func(w http.ResponseWriter, _ *http.Request) {
		if os.Getenv("NODE_TEST_HOOK") == "fails" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Probe") == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	fmt.Println(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
	os.Exit(1)
}

// images is one image: a folder's, with this executable in it.
type images struct{ rootfs string }

func (i images) Use(_ context.Context, ref string) (*image.Image, func(), error) {
	if ref == "missing" {
		return nil, nil, image.ErrNotFound
	}
	img := &image.Image{Rootfs: i.rootfs, RootfsNoXattrs: i.rootfs}
	img.Config.Entrypoint = []string{"/function"}
	return img, func() {}, nil
}

func writeImage(path string) (err error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := erofs.Create(out)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/etc", "/tmp"} {
		if err := w.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	f, err := w.Create("/function")
	if err != nil {
		return err
	}
	if _, err := f.Write(self); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o755), f.Close()); err != nil {
		return err
	}
	return w.Close()
}

// open opens a node with all it needs in a folder; shut closes it.
func open(ctx context.Context, dir, id string, edit ...func(*Config)) (n *Node, shut func() error, err error) {
	j, err := journal.Open(ctx, filepath.Join(dir, "node.db"))
	if err != nil {
		return nil, nil, err
	}
	networks := &late{}
	log := slog.New(slog.DiscardHandler)
	cfg := Config{
		Dir: filepath.Join(dir, "sandboxes"), ID: id, Drivers: []sandbox.Driver{runc.New(runc.Config{})}, Journal: j,
		Images: images{filepath.Join(dir, "image.erofs")}, Networks: networks, Logs: logs.New(filepath.Join(dir, "logs")), Log: log,
	}
	for _, e := range edit {
		e(&cfg)
	}
	n, err = Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	networks.Manager, err = network.New(ctx, network.Config{Dir: filepath.Join(dir, "networks"), NodeID: id, Log: log})
	if err != nil {
		return nil, nil, err
	}
	return n, func() error {
		return errors.Join(n.Close(context.Background()), networks.Close(context.Background()), j.Close())
	}, nil
}

type late struct{ *network.Manager }

func newNode(t *testing.T, edit ...func(*Config)) (*Node, string) {
	testenv.Root(t)
	testenv.Tool(t, "runc", "runc")
	dir := t.TempDir()
	if err := writeImage(filepath.Join(dir, "image.erofs")); err != nil {
		t.Fatal(err)
	}
	n, shut, err := open(context.Background(), dir, sandbox.NewID()[:8], edit...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		wantNothing(t, n, dir)
		if err := shut(); err != nil {
			t.Errorf("close: %v", err)
		}
		if left := entries(t, "/sys/fs/cgroup/*/"+n.CgroupParent()); len(left) > 0 {
			t.Errorf("left after Close: %v", left)
		}
	})
	return n, dir
}

func entries(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// wantNothing checks that no instance has left anything.
func wantNothing(t *testing.T, n *Node, dir string) {
	t.Helper()
	left := append(entries(t, filepath.Join(dir, "sandboxes", "*")), entries(t, "/sys/fs/cgroup/*/"+n.CgroupParent()+"/????????????????/")...)
	left = append(left, entries(t, filepath.Join(dir, "networks", "????????????????"))...)
	records, err := n.cfg.Journal.List(context.Background(), kindSandbox)
	if err != nil || len(records) > 0 || len(left) > 0 || len(n.Instances()) > 0 {
		t.Errorf("left: %v, journal %v (%v), instances %v", left, records, err, n.Instances())
	}
}

func launch(mode string, edit ...func(*Launch)) Launch {
	l := Launch{
		Namespace: "default", Service: "s", Revision: "s-00001", Image: "i", Driver: "runc", Port: 8080,
		Env:       []string{"NODE_TEST_FUNCTION=" + mode},
		Resources: sandbox.Resources{MemoryBytes: 128 << 20, PIDs: 64}, StartTimeout: patience,
	}
	for _, e := range edit {
		e(&l)
	}
	return l
}

func TestLaunchAndStop(t *testing.T) {
	t.Parallel()
	n, _ := newNode(t)
	ctx := context.Background()
	for _, mode := range []string{"serve", "stubborn"} {
		i, err := n.Launch(ctx, launch(mode))
		if err != nil {
			t.Fatal(err)
		}
		c, err := i.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if len(i.Phases()) == 0 || i.ReadyAt().IsZero() || len(n.Instances()) != 1 {
			t.Errorf("phases %v, ready at %v, %d instances", i.Phases(), i.ReadyAt(), len(n.Instances()))
		}
		if err := i.Stop(ctx, 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		// The first process of a container survives SIGTERM unless it handles
		// it: Go's runtime does, and exits.
		if killed := i.Exit().Signal == int(syscall.SIGKILL); killed != (mode == "stubborn") {
			t.Errorf("%s ended with %+v", mode, i.Exit())
		}
	}
}

func TestStopInAHurry(t *testing.T) {
	t.Parallel()
	n, _ := newNode(t)
	i, err := n.Launch(context.Background(), launch("stubborn"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = i.Stop(context.Background(), 24*time.Hour) })
	if err := i.Stop(context.Background(), 0); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestLaunchFails(t *testing.T) {
	t.Parallel()
	n, _ := newNode(t)
	for _, tt := range []struct {
		name, reason, text string
		launch             Launch
	}{
		{"no image", ReasonImage, "not found", launch("serve", func(l *Launch) { l.Image = "missing" })},
		{"no driver", ReasonNoDriver, "runc", launch("serve", func(l *Launch) { l.Driver = "other" })},
		{"no program", "", "/nothing", launch("serve", func(l *Launch) { l.Command = []string{"/nothing"} })},
		{"exits", ReasonExited, "boom", launch("exit")},
		{"never ready", ReasonProbe, "0.0.0.0:$PORT", launch("deaf", func(l *Launch) { l.StartTimeout = 4 * time.Second })},
		{"HTTP probe", ReasonProbe, "503", launch("serve", func(l *Launch) { l.StartTimeout, l.Probe.HTTPPath = 4*time.Second, "/ready" })},
		{"out of memory", ReasonOOM, "128 MiB", launch("hog")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := n.Launch(context.Background(), tt.launch)
			var s *StartError
			if !errors.As(err, &s) {
				t.Fatalf("error %v is no StartError", err)
			}
			if tt.reason != "" && s.Reason != tt.reason || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("reason %s: %v; want %s with %q", s.Reason, err, tt.reason, tt.text)
			}
		})
	}
}

func TestHTTPProbe(t *testing.T) {
	t.Parallel()
	n, _ := newNode(t)
	i, err := n.Launch(context.Background(), launch("serve", func(l *Launch) {
		l.Probe = Probe{HTTPPath: "/ready", Headers: http.Header{"X-Probe": {"1"}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Stop(context.Background(), 0); err != nil {
		t.Error(err)
	}
}

func TestLaunchCancelled(t *testing.T) {
	t.Parallel()
	n, dir := newNode(t)
	for range 12 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.Int64N(int64(400*time.Millisecond))))
		if i, err := n.Launch(ctx, launch("serve")); err == nil {
			_ = i.Stop(context.Background(), 0)
		}
		cancel()
		wantNothing(t, n, dir)
	}
}

func TestCloseEndsLaunches(t *testing.T) {
	t.Parallel()
	n, dir := newNode(t)
	result := make(chan error, 1)
	go func() {
		_, err := n.Launch(context.Background(), launch("deaf"))
		result <- err
	}()
	for len(entries(t, filepath.Join(dir, "sandboxes", "*"))) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := n.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-result; err == nil {
		t.Error("a launch outlived Close")
	}
	if _, err := n.Launch(context.Background(), launch("serve")); !errors.Is(err, ErrClosed) {
		t.Errorf("Launch after Close: %v", err)
	}
}

// own is a node that waits to be killed.
func own(dir, id string) {
	n, _, err := open(context.Background(), dir, id)
	if err == nil {
		_, err = n.Launch(context.Background(), launch("serve"))
	}
	fmt.Println("ready", err)
	_, _ = n.Launch(context.Background(), launch("deaf"))
}

func TestReapAfterKill(t *testing.T) {
	t.Parallel()
	testenv.Root(t)
	testenv.Tool(t, "runc", "runc")
	dir, id := t.TempDir(), sandbox.NewID()[:8]
	if err := writeImage(filepath.Join(dir, "image.erofs")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "NODE_TEST_OWNER="+dir, "NODE_TEST_ID="+id)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	for len(entries(t, filepath.Join(dir, "sandboxes", "*"))) < 2 && strings.HasPrefix(line, "ready <nil>") {
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if line != "ready <nil>\n" {
		t.Errorf("the owner said %q", line)
	}
	again, shut, err := open(context.Background(), dir, id)
	if err != nil {
		t.Fatal(err)
	}
	wantNothing(t, again, dir)
	if err := shut(); err != nil {
		t.Error(err)
	}
}

// stuck is a driver whose sandboxes cannot be removed at first.
type stuck struct {
	sandbox.Driver
	mu    sync.Mutex
	tries int
}

func (d *stuck) Name() string { return "stuck" }

func (d *stuck) Reap(context.Context, sandbox.State) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tries++; d.tries < 3 {
		return errors.New("it is stuck")
	}
	return nil
}

// One orphan that cannot be removed must not keep all services down.
func TestOpenWithStuckOrphan(t *testing.T) {
	t.Parallel()
	testenv.Root(t)
	dir, ctx := t.TempDir(), context.Background()
	j, err := journal.Open(ctx, filepath.Join(dir, "node.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	id := sandbox.NewID()
	state := sandbox.State{ID: id, Dir: filepath.Join(dir, "sandboxes", id)}
	if err := j.Put(ctx, kindSandbox, id, record{Driver: "stuck", State: state}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(state.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := &stuck{}
	n, err := Open(ctx, Config{
		Dir: filepath.Join(dir, "sandboxes"), ID: sandbox.NewID()[:8], Drivers: []sandbox.Driver{d}, Journal: j,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer func() { _ = n.Close(ctx) }()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		records, err := j.List(ctx, kindSandbox)
		if err == nil && len(records) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still recorded: %v, %v", records, err)
		}
	}
	if _, err := os.Stat(state.Dir); err == nil {
		t.Error("its folder is left")
	}
}
