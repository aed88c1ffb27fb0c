package sandboxtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

func testProbe(t *testing.T, s *suite) {
	if name := s.driver.Name(); name == "" {
		t.Error("Name() is empty")
	}
	switch link := s.driver.Capabilities().Link; link {
	case sandbox.LinkVeth, sandbox.LinkTAP:
	default:
		t.Errorf("Capabilities().Link = %q", link)
	}
	id := sandbox.NewID()
	scratch := sandbox.State{ID: id, Dir: filepath.Join(s.dir, "probe"), Cgroup: "skep-probe-" + id}
	if err := os.Mkdir(scratch.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.driver.Probe(s.ctx(t), scratch); err != nil {
		t.Errorf("Probe: %v", err)
	}
	if err := leftBehind(scratch); err != nil {
		t.Errorf("left behind by Probe: %v", err)
	}
}

func testHTTP(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	for i := range 20 { // on old and on new connections
		if i%5 == 0 {
			b.http.CloseIdleConnections()
		}
		b.get(t, "/args", nil)
	}
	s.opts.Inspect(t, b.spec.State())
	phases := b.sb.Phases()
	if len(phases) == 0 {
		t.Error("Phases() is empty")
	}
	for _, p := range phases {
		if p.Name == "" || p.Took < 0 {
			t.Errorf("phase %+v: want a name and a duration", p)
		}
	}
	t.Logf("phases: %v", phases)
}

func testStreaming(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	t.Run("Events", func(t *testing.T) { testEvents(t, b) })
	t.Run("Echo", func(t *testing.T) {
		// The answer is read while the body is still being sent.
		const chunks = 256
		r, w := io.Pipe()
		body := b.post(t, "/echo", r)
		chunk, got := make([]byte, 64<<10), make([]byte, 64<<10)
		for i := range chunks {
			for j := range chunk {
				chunk[j] = byte(i + j)
			}
			if _, err := w.Write(chunk); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(body, got); err != nil {
				t.Fatalf("chunk %d: %v", i, err)
			}
			if !bytes.Equal(chunk, got) {
				t.Fatalf("chunk %d came back different", i)
			}
		}
		w.Close()
		if rest, err := io.ReadAll(body); err != nil || len(rest) > 0 {
			t.Errorf("after the body: %d bytes, %v", len(rest), err)
		}
	})
	const mb = 64
	t.Run("Download", func(t *testing.T) {
		body := b.post(t, fmt.Sprintf("/download?mb=%d", mb), http.NoBody)
		n, err := io.Copy(io.Discard, body)
		if n != mb<<20 || err != nil {
			t.Errorf("got %d bytes, %v; want %d", n, err, mb<<20)
		}
	})
	t.Run("Upload", func(t *testing.T) {
		body := b.post(t, "/upload", io.LimitReader(zeros{}, mb<<20))
		got, err := io.ReadAll(body)
		if want := fmt.Sprintln(mb<<20, "<nil>"); string(got) != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	})
}

// testEvents acknowledges every event before the next is sent, so that none
// can be held back.
func testEvents(t *testing.T, b *box) {
	const events = 20
	r, w := io.Pipe()
	defer w.Close()
	body := b.post(t, fmt.Sprintf("/stream?n=%d", events), r)
	for i := range events {
		want := fmt.Sprintf("data: %d\n\n", i)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(body, got); err != nil || string(got) != want {
			t.Fatalf("event %d: %q, %v", i, got, err)
		}
		if _, err := w.Write([]byte{'.'}); err != nil {
			t.Fatal(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// post sends a body, and returns that of the response as soon as its head is
// there.
func (b *box) post(t *testing.T, path string, body io.Reader) io.Reader {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.s.opts.Timeout)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sandbox"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.http.Do(req)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		t.Fatalf("POST %s: %s", path, res.Status)
	}
	return res.Body
}
