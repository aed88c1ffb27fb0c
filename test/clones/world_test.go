package clones

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/image/build"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/gvisor"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestMain(m *testing.M) {
	gvisor.MaybeRunsc()
	os.Exit(m.Run())
}

const (
	port    = 8080
	timeout = 5 * time.Minute // of one operation; a micro-VM under emulation is slow
	memory  = 256 << 20
	disk    = 32 << 20
)

// world is what the sandboxes of a test need around them.
type world struct {
	dir    string
	parent string // cgroup
	net    *network.Manager
	images *image.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testenv.Root(t)
	var id [4]byte
	_, _ = rand.Read(id[:])
	node := hex.EncodeToString(id[:])
	dir, err := os.MkdirTemp("", "skep-"+node+"-") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir, parent: "skep-" + node}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if g, err := cgroup.Load(w.parent); err != nil {
			t.Error(err)
		} else if err := g.DeleteIfEmpty(); err != nil {
			t.Error(err)
		}
	})
	if w.net, err = network.New(w.ctx(t), network.Config{Dir: filepath.Join(dir, "net"), NodeID: node}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.net.Close(w.ctx(t)); err != nil {
			t.Error(err)
		}
	})
	if w.images, err = image.Open(image.Config{Dir: filepath.Join(dir, "images")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.images.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// ctx bounds one operation, clean-up included.
func (w *world) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// build makes the image of a function, and keeps it until the test's end.
func (w *world) build(t *testing.T, source string) *image.Image {
	t.Helper()
	// Where the build's own tests keep bases: making one takes a minute.
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := build.Build(w.ctx(t), build.Options{Dir: source, CacheDir: filepath.Join(cache, "skep-test", "build"),
		Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close() //nolint:errcheck // the store has it
	stored, err := w.images.Add(w.ctx(t), img, "clones/"+string(img.Runtime)+":latest")
	if err != nil {
		t.Fatal(err)
	}
	used, release, err := w.images.Use(w.ctx(t), stored.Digest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return used
}

// box is a sandbox with all that it has.
type box struct {
	w     *world
	spec  *sandbox.Spec
	sb    sandbox.Sandbox
	lease *network.Lease
	http  *http.Client
	out   *os.File
}

// newBox makes a sandbox from an image, or from a snapshot. Whoever calls
// frees it by destroy.
func (w *world) newBox(ctx context.Context, d sandbox.Driver, img *image.Image, p sandbox.Process, r *sandbox.Restore) (_ *box, err error) {
	id := sandbox.NewID()
	b := &box{w: w}
	defer func() {
		if err != nil {
			_ = b.destroy(context.WithoutCancel(ctx))
		}
	}()
	dir := filepath.Join(w.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	can := d.Capabilities()
	if b.lease, err = w.net.Acquire(ctx, network.Options{Kind: can.Link}); err != nil {
		return nil, err
	}
	if b.out, err = os.Create(filepath.Join(w.dir, id+".out")); err != nil {
		return nil, err
	}
	b.spec = &sandbox.Spec{
		ID: id, Dir: dir, Rootfs: img.Rootfs, Hostname: "clone-" + id[:8], Process: p,
		Resources: sandbox.Resources{MemoryBytes: memory, DiskBytes: disk},
		Link:      b.lease.Link(), Cgroup: w.parent + "/" + id, Stdout: b.out, Stderr: b.out,
	}
	if !can.RootfsXattrs {
		b.spec.Rootfs = img.RootfsNoXattrs
	}
	b.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.sb.Dial(ctx, port) },
	}}
	if r != nil {
		b.sb, err = d.(sandbox.Snapshotter).Prepare(ctx, b.spec, *r)
	} else {
		b.sb, err = d.Create(ctx, b.spec)
	}
	if err == nil {
		err = b.sb.Start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; output: %s", err, b.output())
	}
	return b, nil
}

func (b *box) output() string {
	text, _ := os.ReadFile(b.out.Name())
	return string(text)
}

// ended says how the sandbox has ended, if it has.
func (b *box) ended(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	e, err := b.sb.Wait(ctx)
	if err != nil {
		return "the sandbox runs"
	}
	return fmt.Sprintf("the sandbox has ended: %+v", e)
}

// values asks the function for all that is random. A new sandbox is asked
// until it is there.
func (b *box) values(ctx context.Context, booted bool) (map[string][]string, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		v, err := b.ask(ctx)
		if err == nil {
			return v, nil
		}
		if !booted || errors.Is(err, sandbox.ErrNotRunning) {
			return nil, fmt.Errorf("%w; output: %s", err, b.output())
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; output: %s", err, b.output())
		case <-time.After(wait):
		}
	}
}

func (b *box) ask(ctx context.Context) (map[string][]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://function/", nil)
	if err != nil {
		return nil, err
	}
	res, err := b.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", res.Status, body)
	}
	var v map[string][]string
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, fmt.Errorf("%w in %.100s", err, body)
	}
	return v, nil
}

// destroy frees everything. It works on a box that is half made.
func (b *box) destroy(ctx context.Context) error {
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	if b.http != nil {
		b.http.CloseIdleConnections()
	}
	if b.sb != nil {
		note(b.sb.Destroy(ctx))
	}
	if b.lease != nil {
		note(b.lease.Release(ctx))
	}
	if b.out != nil {
		note(b.out.Close())
	}
	if b.spec != nil {
		note(os.RemoveAll(b.spec.Dir))
	}
	return first
}
