package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// probeStats is what the probe counts.
type probeStats struct {
	Instance                  string
	InFlight, Most, Cancelled int
}

func (s *skep) stats(service string) probeStats {
	s.t.Helper()
	return decode[probeStats](s.t, s.get(service, "/stats").body)
}

// stream requests a path and leaves the body to be read.
func (s *skep) stream(ctx context.Context, service, path string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Host(service)+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func (s *skep) grpc(service string) *grpc.ClientConn {
	s.t.Helper()
	c, err := grpc.NewClient("passthrough:///"+s.Endpoints.Gateway,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(s.Host(service)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestProtocols talks to one function under each driver in all ways.
func TestProtocols(t *testing.T) {
	t.Parallel()
	s := shared(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := &skep{s.Skep, t}
			name := s.deploy("proto", "--sandbox", driver)
			h2c := s.deploy("proto-h2c", "--sandbox", driver, "--protocol", "h2c")
			t.Run("events", func(t *testing.T) { testEvents(&skep{s.Skep, t}, name) })
			t.Run("websocket", func(t *testing.T) { testWebSocket(&skep{s.Skep, t}, name) })
			t.Run("websocket to h2c", func(t *testing.T) { testWebSocket(&skep{s.Skep, t}, h2c) })
			t.Run("grpc", func(t *testing.T) { testGRPC(&skep{s.Skep, t}, h2c) })
			t.Run("upload", func(t *testing.T) { testUpload(&skep{s.Skep, t}, name) })
			t.Run("upload h2c", func(t *testing.T) { testUpload(&skep{s.Skep, t}, h2c) })
			t.Run("disconnect", func(t *testing.T) { testDisconnect(&skep{s.Skep, t}, name) })
			t.Run("disconnect h2c", func(t *testing.T) { testDisconnect(&skep{s.Skep, t}, h2c) })
		})
	}
}

// TestInvokeGRPC has the CLI call a function that tells its types by
// reflection.
func TestInvokeGRPC(t *testing.T) {
	t.Parallel()
	s := shared(t)
	image := strings.TrimSpace(s.ok("image", "build", filepath.Join(root, "test/e2e/functions/health"), "--name", "local/health"))
	name := s.deploy0("health", image, "--protocol", "h2c")
	out := s.ok("invoke", name, "--grpc", "grpc.health.v1.Health/Check", "--data", `{"service":""}`)
	if !strings.Contains(out, "SERVING") {
		t.Errorf("it answers %q", out)
	}
	s.fails(1, []string{"NotFound", "unknown service"}, "invoke", name, "--grpc", "grpc.health.v1.Health/Check", "--data", `{"service":"x"}`)
	s.fails(2, []string{"grpc.health.v1.Health.Check"}, "invoke", name, "--grpc", "grpc.health.v1.Health/Chekc")
	s.fails(2, []string{"no service", "grpc.health.v1.Health"}, "invoke", name, "--grpc", "grpc.Health/Check")
	s.fails(1, []string{"no such"}, "invoke", name, "--grpc", "grpc.health.v1.Health/Check", "--data", `{"no such":1}`)
}

// testEvents reads an event while the next is not yet made.
func testEvents(s *skep, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp := s.stream(ctx, name, "/sse?n=3&ms=50")
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		s.t.Errorf("Content-Type is %q", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	for i := 0; i < 3; {
		if !lines.Scan() {
			s.t.Fatalf("the stream ends before event %d: %v", i, lines.Err())
		}
		if lines.Text() == fmt.Sprintf("data: %d", i) {
			i++
		}
	}
	// An endless one arrives event by event: a buffer would hold it back.
	endless := s.stream(ctx, name, "/sse?n=2&ms=3600000")
	if b := make([]byte, 9); true {
		if _, err := io.ReadFull(endless.Body, b); err != nil || string(b) != "data: 0\n\n" {
			s.t.Errorf("the first event of a slow stream: %q, error %v", b, err)
		}
	}
}

func testWebSocket(s *skep, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := s.Client()
	c, _, err := websocket.Dial(ctx, "ws://"+s.Host(name)+"/ws", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(2 << 20)
	for _, size := range []int{1, 1000, 1 << 20} {
		want := bytes.Repeat([]byte{7}, size)
		if err := c.Write(ctx, websocket.MessageBinary, want); err != nil {
			s.t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || !bytes.Equal(got, want) {
			s.t.Fatalf("a message of %d bytes: %d came back, error %v", size, len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, "enough"); err != nil {
		s.t.Errorf("close: %v", err)
	}
}

func testGRPC(s *skep, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := s.grpc(name)
	var trailer metadata.MD
	out := &wrapperspb.StringValue{}
	if err := c.Invoke(ctx, "/skep.test.Echo/Echo", wrapperspb.String("hi"), out, grpc.Trailer(&trailer)); err != nil || out.Value != "hi" {
		s.t.Fatalf("unary: %q, error %v", out.Value, err)
	}
	if n := trailer.Get("x-messages"); len(n) != 1 || n[0] != "1" {
		s.t.Errorf("trailers: %v", trailer)
	}
	err := c.Invoke(ctx, "/skep.test.Echo/Fail", wrapperspb.String("hi"), out)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not now") {
		s.t.Errorf("a failing call: %v", err)
	}
	s.fails(1, []string{"reflection"}, "invoke", name, "--grpc", "skep.test.Echo/Echo", "--timeout", "20s")
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/skep.test.Echo/Echo")
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range 5 { // each is answered before the next is sent
		want := strings.Repeat("x", 1+i*10_000)
		if err := stream.SendMsg(wrapperspb.String(want)); err != nil {
			s.t.Fatal(err)
		}
		if err := stream.RecvMsg(out); err != nil || out.Value != want {
			s.t.Fatalf("message %d: %d bytes, error %v", i, len(out.Value), err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		s.t.Fatal(err)
	}
	if err := stream.RecvMsg(out); !errors.Is(err, io.EOF) {
		s.t.Errorf("the end of the stream: %v", err)
	}
	if n := stream.Trailer().Get("x-messages"); len(n) != 1 || n[0] != "5" {
		s.t.Errorf("trailers of the stream: %v", stream.Trailer())
	}
}

func testUpload(s *skep, name string) {
	body := make([]byte, 12<<20)
	_, _ = rand.Read(body)
	want := fmt.Sprintf("%d %x\n", len(body), sha256.Sum256(body))
	if r, err := s.do(http.MethodPut, name, "/sum", body); err != nil || r.body != want {
		s.t.Errorf("an upload of 12 MB: %q, error %v; want %q", r.body, err, want)
	}
	// Of unknown length.
	req, err := http.NewRequest(http.MethodPost, "http://"+s.Host(name)+"/sum", io.MultiReader(bytes.NewReader(body)))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != want {
		s.t.Errorf("a chunked upload: %q, error %v", got, err)
	}
}

// testDisconnect: a client that goes away ends the request in the function.
func testDisconnect(s *skep, name string) {
	before := s.stats(name).Cancelled
	for _, path := range []string{"/sleep?ms=600000", "/sse?n=100000&ms=20"} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Host(name)+path, nil)
			if resp, err := s.Client().Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}()
		eventually(s.t, "the request to run", func() string {
			if st := s.stats(name); st.InFlight < 1 {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
		cancel()
		<-done
		before++
		eventually(s.t, path+" to be cancelled", func() string {
			if st := s.stats(name); st.Cancelled < before {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
	}
}

// TestConcurrency: an instance never has more requests than it may, demand
// makes more instances, and never more than allowed.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ concurrency, maxScale, clients int }{{1, 3, 12}, {2, 2, 12}, {5, 1, 12}} {
		t.Run(fmt.Sprintf("%d of %d", c.concurrency, c.maxScale), func(t *testing.T) {
			t.Parallel()
			s := shared(t)
			name := s.deploy("conc", "--concurrency", strconv.Itoa(c.concurrency), "--max-scale", strconv.Itoa(c.maxScale))
			var mu sync.Mutex
			seen := map[string]int{} // by instance
			var wg sync.WaitGroup
			for range c.clients {
				wg.Go(func() {
					for range 15 {
						r, err := s.do(http.MethodGet, name, "/sleep?ms=100", nil)
						if err != nil || r.StatusCode != http.StatusOK {
							t.Errorf("%v %q, error %v", r.Response, r.body, err)
							return
						}
						mu.Lock()
						seen[r.Header.Get("X-Instance")]++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if len(seen) != c.maxScale {
				t.Errorf("%d instances have answered, want %d: %v", len(seen), c.maxScale, seen)
			}
			if n := len(s.instances(name)); n > c.maxScale {
				t.Errorf("%d instances, want %d at most", n, c.maxScale)
			}
			asked := map[string]bool{}
			eventually(t, "to hear of all instances", func() string {
				st := s.stats(name)
				if st.Most > c.concurrency {
					t.Fatalf("%+v: more than %d at a time", st, c.concurrency)
				}
				asked[st.Instance] = true
				if len(asked) < len(s.instances(name)) {
					// Busy ones are passed over.
					go func() { _, _ = s.do(http.MethodGet, name, "/sleep?ms=200", nil) }()
					return fmt.Sprintf("%d of %d", len(asked), len(seen))
				}
				return ""
			})
		})
	}
}

// TestTimeouts: of requests that take long and of those that wait too long.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	s := shared(t)
	slow := s.deploy("slow", "--timeout", "1s")
	r, err := s.do(http.MethodGet, slow, "/sleep?ms=20000", nil)
	if err != nil || r.StatusCode != http.StatusGatewayTimeout || !strings.Contains(r.body, "too long") {
		t.Errorf("beyond timeoutSeconds: %v %q, error %v", r.Response, r.body, err)
	}
	if r := s.get(slow, "/sleep?ms=10"); r.body != "slept\n" {
		t.Errorf("the next one: %q", r.body)
	}
	// One instance, one request at a time, and a queue that gives up early.
	name := unique("queue")
	s.deleteAtEnd(name)
	yaml := manifest("queue", `{serving.knative.dev/progress-deadline: 2s, autoscaling.knative.dev/max-scale: "1"}`, probeRef, "name: probe\n      containerConcurrency: 1")
	yaml = strings.Replace(yaml, "annotations:\n        {", "annotations: {", 1)
	s.ok("deploy", "-f", write(t, "queue.yaml", strings.ReplaceAll(yaml, "NAME", name)), "--wait-timeout", "60s")
	ctx, cancel := context.WithCancel(context.Background())
	busy := s.stream(ctx, name, "/sse?n=100000&ms=20") // holds the only place
	r, err = s.do(http.MethodGet, name, "/", nil)
	if err != nil || r.StatusCode != http.StatusGatewayTimeout || !strings.Contains(r.body, "no instance was free within") {
		t.Errorf("a request that waits for ever: %v %q, error %v", r.Response, r.body, err)
	}
	cancel()
	_ = busy.Body.Close()
	s.get(name, "/")
}

// TestFailuresWhileServing: an instance that dies is replaced, and said why.
func TestFailuresWhileServing(t *testing.T) {
	t.Parallel()
	s := shared(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := &skep{s.Skep, t}
			name := s.deploy("dies", "--sandbox", driver, "--memory", "64Mi")
			for _, c := range []struct{ path, reason, word string }{
				{"/exit?code=9", "ContainerExited", "exit code 9"}, {"/oom", "OOMKilled", "64 MiB"},
			} {
				s.get(name, "/")
				if r, err := s.do(http.MethodPost, name, c.path, nil); err != nil || r.StatusCode != http.StatusBadGateway { // a GET would be tried again
					t.Errorf("%s: %v %q, error %v", c.path, r.Response, r.body, err)
				}
				eventually(t, "an event "+c.reason, func() string {
					out := s.ok("describe", name)
					if strings.Contains(out, c.reason) && strings.Contains(out, c.word) {
						return ""
					}
					return out
				})
				eventually(t, "another instance to answer", func() string {
					r, err := s.do(http.MethodGet, name, "/", nil)
					if err != nil || r.StatusCode != http.StatusOK {
						return fmt.Sprint(r.StatusCode, r.body, err)
					}
					return ""
				})
			}
		})
	}
}

// TestManyAtOnce starts from zero with many requests at the same time.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := up(t, "--sandbox", "gvisor", "--idle-after", "1s").importProbe()
	name := s.deploy("many", "--concurrency", "4", "--max-scale", "8")
	s.atZero(name)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			r, err := s.do(http.MethodGet, name, "/sleep?ms=50", nil)
			if err != nil || r.StatusCode != http.StatusOK {
				t.Errorf("%v %q, error %v", r.Response, r.body, err)
			}
		})
	}
	wg.Wait()
	s.atZero(name)
	// A queue that is full refuses at once; the client is told when to come back.
	one := s.deploy("full", "--concurrency", "1", "--max-scale", "1")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.stream(ctx, one, "/sse?n=100000&ms=20")
	refused := make(chan reply, 1)
	for range 1100 { // 1000 may wait
		go func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Host(one)+"/", nil)
			c := s.Client()
			defer c.CloseIdleConnections()
			resp, err := c.Do(req)
			if err != nil {
				return
			}
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			select {
			case refused <- reply{resp, string(b)}:
			default:
			}
		}()
	}
	select {
	case r := <-refused:
		if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
			t.Errorf("a full queue answers %v %q", r.Response, r.body)
		}
	case <-t.Context().Done():
		t.Error("nobody was refused")
	}
}

// TestHosts: names that lead nowhere, and raw nonsense.
func TestHosts(t *testing.T) {
	t.Parallel()
	s := shared(t)
	name := s.deploy("host")
	for host, want := range map[string]int{
		s.Host(name):                          200,
		strings.ToUpper(s.Host(name)) + ".":   200,
		s.Host(name) + ":80":                  200,
		name + ".default.svc.cluster.local":   200,
		"other.default." + s.Endpoints.Domain: 404,
		"localhost":                           404,
		"a b":                                 400,
	} {
		c, err := net.Dial("tcp", s.Endpoints.Gateway)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != want {
			t.Errorf("Host %q: %v, error %v; want %d", host, resp, err, want)
		}
		_ = c.Close()
	}
	if resp, err := http.Get("http://" + s.Endpoints.Metrics + "/metrics"); err != nil || resp.StatusCode != 200 {
		t.Errorf("metrics: %v, error %v", resp, err)
	} else {
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		for _, m := range []string{"skep_", name, "go_goroutines"} {
			if !strings.Contains(string(b), m) {
				t.Errorf("the metrics lack %q", m)
			}
		}
	}
	if resp, err := http.Get("http://" + s.Endpoints.Metrics + "/healthz"); err != nil || resp.StatusCode != 200 {
		t.Errorf("healthz: %v, error %v", resp, err)
	}
}
