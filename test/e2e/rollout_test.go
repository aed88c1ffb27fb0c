package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// load sends requests without a pause until stopped, and counts those that
// were not answered with 200.
type load struct {
	stop    context.CancelFunc
	wg      sync.WaitGroup
	total   atomic.Int64
	bad     atomic.Int64
	mu      sync.Mutex
	example string
	seen    map[string]int // by body
}

func (s *skep) load(service, path string, clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel, seen: map[string]int{}}
	s.t.Cleanup(func() { cancel(); l.wg.Wait() })
	for range clients {
		l.wg.Go(func() {
			c := s.Client()
			defer c.CloseIdleConnections()
			for ctx.Err() == nil {
				// Not with ctx: what was begun is to be answered.
				resp, body, err := s.Get(context.Background(), c, service, path)
				l.total.Add(1)
				l.mu.Lock()
				if err != nil || resp.StatusCode != http.StatusOK {
					l.bad.Add(1)
					l.example = fmt.Sprintf("error %v, body %q", err, body)
				}
				l.seen[strings.TrimSpace(body)]++
				l.mu.Unlock()
			}
		})
	}
	return l
}

// end stops the load, none of whose requests may have failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	if n := l.bad.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, such as: %s", n, l.total.Load(), l.example)
	}
	t.Logf("%d requests", l.total.Load())
}

// count is how many responses had the body.
func (l *load) count(body string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[body]
}

// answered waits until some more responses have the body.
func (l *load) answered(t *testing.T, body string) {
	t.Helper()
	from := l.count(body)
	eventually(t, "responses "+body, func() string {
		if n := l.count(body); n < from+20 {
			return fmt.Sprintf("%d, want %d", n, from+20)
		}
		return ""
	})
}

func TestRolloutUnderLoad(t *testing.T) {
	t.Parallel()
	s := shared(t)
	name := s.deploy("rollout", "--env", "VERSION=1")
	l := s.load(name, "/", 8)
	l.answered(t, "probe 1")
	for v := 2; v <= 4; v++ {
		s.deployAs(name, probeRef, "--env", fmt.Sprintf("VERSION=%d", v))
		l.answered(t, fmt.Sprintf("probe %d", v))
	}
	l.end(t)
	eventually(t, "the old revisions to end", func() string {
		if i := s.instances(name); len(i) > 1 {
			return fmt.Sprintf("%+v", i)
		}
		return ""
	})
}

// TestBrokenRevision: what does not work never takes the traffic.
func TestBrokenRevision(t *testing.T) {
	t.Parallel()
	s := shared(t)
	name := s.deploy("broken", "--env", "VERSION=good")
	l := s.load(name, "/", 4)
	l.answered(t, "probe good")
	for _, c := range []struct {
		name  string
		args  []string
		words []string
	}{
		{"exits", []string{"--image", probeRef, "--env", "MODE=exit"}, []string{"ContainerExited", "exit code 3", "boom: the configuration is missing"}},
		{"no image", []string{"--image", s.Endpoints.Registry + "/no/such:image"}, []string{"ImagePullFailed", "no/such:image", "skep image list"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &skep{s.Skep, t}
			s.fails(4, c.words, append([]string{"deploy", name, "--wait-timeout", "60s"}, c.args...)...)
			l.answered(t, "probe good")
			text := s.ok("describe", name)
			for _, w := range append(c.words, "-00001 (", "takes 100 %") {
				if !strings.Contains(text, w) {
					t.Errorf("describe does not say %q:\n%s", w, text)
				}
			}
			if out := s.ok("list"); !strings.Contains(out, "False") || !strings.Contains(out, c.words[0]) {
				t.Errorf("list:\n%s", out)
			}
			if n := len(s.instances(name)); n != 1 {
				t.Errorf("%d instances, want the good one", n)
			}
		})
	}
	// Mended, it takes over.
	s.deployAs(name, probeRef, "--env", "VERSION=better")
	l.answered(t, "probe better")
	l.end(t)
}

// TestRolloutRetried: what failed is tried again by itself, since what it needs
// may come; until then the status tells what is wrong.
func TestRolloutRetried(t *testing.T) {
	t.Parallel()
	s := shared(t)
	name, ref := unique("late"), "local/"+unique("late")+":v1"
	s.deleteAtEnd(name)
	s.fails(4, []string{ref}, "deploy", name, "--image", ref)
	s.ok("image", "import", probeDir, "--name", ref)
	if out := s.ok("describe", name); !strings.Contains(out, "ImagePullFailed") {
		t.Errorf("describe:\n%s", out)
	}
	eventually(t, "the image that came late to be deployed", func() string {
		r, err := s.do(http.MethodGet, name, "/", nil)
		if err != nil {
			return err.Error()
		}
		if r.StatusCode != http.StatusOK {
			return r.Status
		}
		return ""
	})
}
