package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// guestPort is where the guest's "serve" listens.
const guestPort = 8080

// box is a sandbox under test and everything around it.
type box struct {
	s     *suite
	spec  *sandbox.Spec
	sb    sandbox.Sandbox
	lease *network.Lease
	http  *http.Client

	restore *sandbox.Restore // how to prepare it; nil: it is created
}

func (s *suite) ctx(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Timeout)
	t.Cleanup(cancel)
	return ctx
}

// prepare makes all that a sandbox needs, but not the sandbox. At the test's
// end it frees it, and checks that the sandbox left nothing behind.
func (s *suite) prepare(t testing.TB, egress bool, change func(*sandbox.Spec)) *box {
	t.Helper()
	id := sandbox.NewID()
	dir := filepath.Join(s.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lease, err := s.net.Acquire(s.ctx(t), network.Options{Kind: s.driver.Capabilities().Link, Egress: egress})
	if err != nil {
		os.Remove(dir)
		t.Fatal(err)
	}
	out := make([]*os.File, 2)
	for i, name := range []string{"stdout", "stderr"} {
		if out[i], err = os.Create(filepath.Join(s.dir, id+"."+name)); err != nil {
			t.Fatal(err)
		}
	}
	b := &box{s: s, lease: lease, spec: &sandbox.Spec{
		ID: id, Dir: dir, Rootfs: s.image, Hostname: "conformance",
		Process:   sandbox.Process{Args: []string{"/guest", "serve"}},
		Resources: sandbox.Resources{MemoryBytes: s.opts.MemoryBytes, DiskBytes: s.opts.DiskBytes},
		Link:      lease.Link(),
		Cgroup:    s.parent + "/" + id,
		Stdout:    out[0], Stderr: out[1],
	}}
	if change != nil {
		change(b.spec)
	}
	b.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return b.sb.Dial(ctx, guestPort)
		},
	}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("sandbox %s: stdout: %s\nstderr: %s", id, b.output(t, "stdout"), b.output(t, "stderr"))
			b.logEnd(t)
		}
		b.destroy(t)
		b.checkGone(t)
		if t.Failed() { // leave the machine as it was even so
			if err := s.driver.Reap(s.ctx(t), b.spec.State()); err != nil {
				t.Errorf("Reap after a failure: %v", err)
			}
		}
		b.release(t)
		for i, name := range []string{"stdout", "stderr"} {
			out[i].Close()
			os.Remove(filepath.Join(s.dir, id+"."+name))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	return b
}

// create prepares and creates a sandbox.
func (s *suite) create(t testing.TB, change func(*sandbox.Spec)) *box {
	t.Helper()
	b := s.prepare(t, false, change)
	b.create(t)
	return b
}

// start creates and starts a sandbox.
func (s *suite) start(t testing.TB, change func(*sandbox.Spec)) *box {
	t.Helper()
	b := s.create(t, change)
	b.start(t)
	return b
}

// serve starts a sandbox and waits until the guest answers.
func (s *suite) serve(t testing.TB, change func(*sandbox.Spec)) *box {
	t.Helper()
	b := s.start(t, change)
	b.ready(t)
	return b
}

func (b *box) create(t testing.TB) {
	t.Helper()
	sb, err := b.make(b.s.ctx(t))
	if err != nil {
		t.Fatalf("Create or Prepare: %v", err)
	}
	b.sb = sb
	if sb.ID() != b.spec.ID {
		t.Errorf("ID() = %q, want %q", sb.ID(), b.spec.ID)
	}
}

// make creates the sandbox, or prepares it.
func (b *box) make(ctx context.Context) (sandbox.Sandbox, error) {
	if b.restore == nil {
		return b.s.driver.Create(ctx, b.spec)
	}
	return b.s.driver.(sandbox.Snapshotter).Prepare(ctx, b.spec, *b.restore)
}

func (b *box) start(t testing.TB) {
	t.Helper()
	if err := b.sb.Start(b.s.ctx(t)); err != nil {
		t.Fatalf("Start: %v", err)
	}
}

// ready waits until the guest answers.
func (b *box) ready(t testing.TB) {
	t.Helper()
	ctx := b.s.ctx(t)
	if w, ok := b.sb.(sandbox.PortWaiter); ok {
		if err := w.WaitPort(ctx, guestPort); err != nil {
			t.Fatalf("WaitPort: %v", err)
		}
	}
	err := poll(ctx, func() error {
		_, err := b.try(ctx, "/args", nil)
		return err
	})
	if err != nil {
		t.Fatalf("the guest does not answer: %v", err)
	}
}

// try sends a request to the guest, and decodes the answer into v.
func (b *box) try(ctx context.Context, path string, v any) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sandbox"+path, nil)
	if err != nil {
		return "", err
	}
	res, err := b.http.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s: %s", path, res.Status, bytes.TrimSpace(body))
	}
	if v != nil {
		err = json.Unmarshal(body, v)
	}
	return strings.TrimSpace(string(body)), err
}

// get sends a request that must succeed.
func (b *box) get(t testing.TB, path string, v any, query ...string) string {
	t.Helper()
	q := url.Values{}
	for i := 0; i+1 < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	body, err := b.try(b.s.ctx(t), path, v)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return body
}

// wait waits for the function's end.
func (b *box) wait(t testing.TB) sandbox.Exit {
	t.Helper()
	e, err := b.sb.Wait(b.s.ctx(t))
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	if e.At.IsZero() {
		t.Error("Exit.At is not set")
	}
	return e
}

func (b *box) output(t testing.TB, name string) string {
	t.Helper()
	out, err := os.ReadFile(filepath.Join(b.s.dir, b.spec.ID+"."+name))
	if err != nil {
		t.Errorf("read output: %v", err)
	}
	return string(out)
}

// waitOutput waits until the output contains text.
func (b *box) waitOutput(t testing.TB, name, text string) {
	t.Helper()
	err := poll(b.s.ctx(t), func() error {
		if out := b.output(t, name); !strings.Contains(out, text) {
			return fmt.Errorf("%s is %q, want it to contain %q", name, out, text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// logEnd says how a sandbox ended, if it has.
func (b *box) logEnd(t testing.TB) {
	t.Helper()
	if b.sb == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if e, err := b.sb.Wait(ctx); err == nil {
		t.Logf("it has ended: %+v", e)
	}
}

func (b *box) destroy(t testing.TB) {
	t.Helper()
	b.http.CloseIdleConnections()
	if b.sb == nil {
		return
	}
	if err := b.sb.Destroy(b.s.ctx(t)); err != nil {
		t.Errorf("Destroy: %v", err)
	}
}

func (b *box) release(t testing.TB) {
	t.Helper()
	namespaces := namespaceIDs(t, b.lease.Link())
	if err := b.lease.Release(b.s.ctx(t)); err != nil {
		t.Errorf("release the network: %v", err)
	}
	checkNamespaces(t, namespaces)
}

// poll calls fn until it succeeds or ctx ends; then it returns fn's error.
func poll(ctx context.Context, fn func() error) error {
	wait := 5 * time.Millisecond
	for {
		err := fn()
		if err == nil {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
		wait = min(wait*3/2, 200*time.Millisecond)
	}
}
