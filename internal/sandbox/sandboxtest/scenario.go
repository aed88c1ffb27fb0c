package sandboxtest

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// Scenario is the suite's means, for what a driver has for itself to test:
// networks, an image with the guest, and a look at what was left behind.
type Scenario struct{ s *suite }

// NewScenario makes them for a driver. They are freed at the test's end.
func NewScenario(t *testing.T, d sandbox.Driver, opts Options) *Scenario {
	t.Helper()
	testenv.Root(t)
	opts.setDefaults(t)
	return &Scenario{newSuite(t, func(testing.TB) sandbox.Driver { return d }, opts)}
}

// With is the same with another driver.
func (x *Scenario) With(d sandbox.Driver) *Scenario {
	s := *x.s
	s.driver = d
	return &Scenario{&s}
}

// Disk makes a disk with one file, and returns its path.
func (x *Scenario) Disk(t *testing.T, name, content string) string {
	t.Helper()
	path := x.s.dir + "/" + sandbox.NewID() + ".erofs"
	writeDisk(t, path, name, content)
	return path
}

// Serve boots a sandbox and waits until the guest answers. change edits what it
// is made from; nil leaves it.
func (x *Scenario) Serve(t *testing.T, change func(*sandbox.Spec)) *Guest {
	t.Helper()
	return &Guest{x.s.serve(t, change)}
}

// Restore restores a sandbox, which answers.
func (x *Scenario) Restore(t *testing.T, r sandbox.Restore, change func(*sandbox.Spec)) *Guest {
	t.Helper()
	b := x.s.prepare(t, false, change)
	b.restore = &r
	b.create(t)
	b.start(t)
	return &Guest{b}
}

// Guest is a sandbox of a Scenario.
type Guest struct{ b *box }

// Get asks the guest, which must answer, and decodes the answer into v.
func (g *Guest) Get(t *testing.T, path string, v any, query ...string) {
	t.Helper()
	g.b.get(t, path, v, query...)
}

// Sandbox is the sandbox itself.
func (g *Guest) Sandbox() sandbox.Sandbox { return g.b.sb }

// Exec runs a command in it, which must succeed.
func (g *Guest) Exec(t *testing.T, args ...string) {
	t.Helper()
	if e, out, errs, err := g.b.exec(t, sandbox.Process{Args: args}, nil); err != nil || e.Code != 0 {
		t.Fatalf("Exec %q: %+v, %v, %q, %q", args, e, err, out, errs)
	}
}

// Mount mounts the first disk.
func (g *Guest) Mount(t *testing.T, path string) {
	t.Helper()
	if err := g.b.sb.(sandbox.Mounter).Mount(g.b.s.ctx(t), 0, path); err != nil {
		t.Fatalf("Mount: %v", err)
	}
}

// MemoryBytes is what it takes of the host's memory.
func (g *Guest) MemoryBytes(t *testing.T) int64 {
	t.Helper()
	st, err := g.b.sb.Stats(g.b.s.ctx(t))
	if err != nil {
		t.Fatalf("Stats: %v", err)
	}
	return st.MemoryBytes
}

// Save makes a snapshot of it; diff is as in sandbox.SaveOptions.
func (g *Guest) Save(t *testing.T, diff bool) string {
	t.Helper()
	return (&snapshots{suite: g.b.s}).save(t, g.b, diff)
}

// Destroy ends it.
func (g *Guest) Destroy(t *testing.T) {
	t.Helper()
	g.b.destroy(t)
}

// Eventually waits until fn returns no error.
func (x *Scenario) Eventually(t *testing.T, fn func() error) {
	t.Helper()
	if err := poll(x.s.ctx(t), fn); err != nil {
		t.Error(err)
	}
}

// Download has the guest send so many MiB, and returns how many bytes came.
func (g *Guest) Download(t *testing.T, mb int) int64 {
	t.Helper()
	req, err := http.NewRequestWithContext(g.b.s.ctx(t), http.MethodGet, fmt.Sprintf("http://sandbox/download?mb=%d", mb), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := g.b.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
