package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// recorder is a guest that does what it is told, in memory.
type recorder struct {
	output  []byte // what process 0 has written
	input   chan []byte
	started chan *agentpb.Process

	mu       sync.Mutex
	restored []*Restored
	clock    []time.Time
	notes    []string
}

func newRecorder() *recorder {
	return &recorder{input: make(chan []byte, 100), started: make(chan *agentpb.Process, 100)}
}

func (r *recorder) Ping() *agentpb.PingResponse { return &agentpb.PingResponse{Version: Version} }

func (r *recorder) Configure(context.Context, *agentpb.ConfigureRequest) error { return nil }

func (r *recorder) Start(_ context.Context, p *agentpb.Process) error {
	if p.Args[0] == "/missing" {
		return errors.New(`exec: "/missing": no such file or directory`)
	}
	select {
	case r.started <- p:
	default:
	}
	return nil
}

func (r *recorder) Exec(context.Context, *agentpb.ExecRequest) (uint32, error) { return 1, nil }

func (r *recorder) Read(_ context.Context, _ uint32, _ agentpb.Stream, offset uint64) ([]byte, bool, error) {
	if offset > uint64(len(r.output)) {
		return nil, false, errors.New("not here")
	}
	rest := r.output[offset:]
	return rest[:min(len(rest), MaxChunk)], len(rest) <= MaxChunk, nil
}

func (r *recorder) Write(_ context.Context, _ uint32, b []byte, _ bool) (int, error) {
	n := min(len(b), 1000) // the host must send the rest again
	select {
	case r.input <- bytes.Clone(b[:n]):
	default:
	}
	return n, nil
}

func (r *recorder) Signal(uint32, uint32) error { return nil }

func (r *recorder) Wait(context.Context, uint32) (*agentpb.WaitResponse, error) {
	return &agentpb.WaitResponse{Ended: true, Code: 3}, nil
}

func (r *recorder) Release(uint32) error { return nil }

func (r *recorder) WaitPort(context.Context, uint16) (bool, error) { return true, nil }

func (r *recorder) Mount(uint32, string) error { return nil }

func (r *recorder) Suspend() { r.note("suspend") }

func (r *recorder) Freeze() (Marks, error) {
	r.note("freeze")
	return Marks{Stdout: 7, Stderr: 1 << 40}, nil
}

func (r *recorder) Thaw() error {
	r.note("thaw")
	return nil
}

func (r *recorder) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, what)
}

// slowName is the host name that the recorder needs slowness to take.
const (
	slowName = "slow"
	slowness = 5 * resend / 2
)

func (r *recorder) Restored(got *Restored) error {
	switch got.Hostname {
	case "bad":
		return errors.New("cannot be that")
	case slowName:
		time.Sleep(slowness) // an emulated processor
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restored = append(r.restored, got)
	return nil
}

func (r *recorder) SetClock(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = append(r.clock, now)
	return nil
}

// told is what Restored was given so far.
func (r *recorder) told() []*Restored {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.restored)
}

// serve starts a server, and returns a way to dial it.
func serve(t testing.TB, g Guest, host string) func(context.Context) (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, net.ParseIP(host), g) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp4", l.Addr().String())
	}
}

func connect(t testing.TB, g Guest) *Client {
	t.Helper()
	c, err := Connect(t.Context(), serve(t, g, "127.0.0.1"), NewToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestCalls(t *testing.T) {
	g := newRecorder()
	g.output = bytes.Repeat([]byte("0123456789"), 50_000)
	c := connect(t, g)
	ctx := t.Context()
	if _, err := c.Ping(ctx); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	if _, err := c.CopyOutput(ctx, 0, agentpb.Stream_STREAM_STDOUT, 0, &out); err != nil || !bytes.Equal(out.Bytes(), g.output) {
		t.Errorf("CopyOutput: %d bytes, %v", out.Len(), err)
	}
	in, got := strings.Repeat("input ", 500), ""
	if err := c.CopyInput(ctx, 0, strings.NewReader(in)); err != nil {
		t.Error(err)
	}
	for len(got) < len(in) {
		got += string(<-g.input)
	}
	if got != in {
		t.Errorf("input %q", got)
	}
	if r, err := c.Wait(ctx, 0); err != nil || r.Code != 3 {
		t.Errorf("Wait: %v, %v", r, err)
	}
	if err := c.WaitPort(ctx, 80); err != nil {
		t.Error(err)
	}
	err := c.Start(ctx, &agentpb.Process{Args: []string{"/missing"}})
	if err == nil || err.Error() != `agent: start: exec: "/missing": no such file or directory` {
		t.Errorf("Start: %v", err)
	}
}

func copyOutput(ctx context.Context, c *Client, s agentpb.Stream) error {
	_, err := c.CopyOutput(ctx, 0, s, 0, io.Discard)
	return err
}

func TestBounds(t *testing.T) {
	c := connect(t, newRecorder())
	ctx := t.Context()
	start := func(p *agentpb.Process) error { return c.Start(ctx, p) }
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"no arguments":   {start(nil), "process.args"},
		"many arguments": {start(&agentpb.Process{Args: make([]string, maxArgs+1)}), "process.args"},
		"many variables": {start(&agentpb.Process{Args: []string{"a"}, Env: make([]string, maxArgs+1)}), "more than"},
		"long arguments": {start(&agentpb.Process{Args: []string{strings.Repeat("a", maxStrings)}}), "limit"},
		"NUL":            {start(&agentpb.Process{Args: []string{"a\x00b"}}), "NUL"},
		"relative cwd":   {start(&agentpb.Process{Args: []string{"a"}, Cwd: "b"}), "process.cwd"},
		"long user":      {start(&agentpb.Process{Args: []string{"a"}, User: strings.Repeat("u", maxName+1)}), "process.user"},
		"host name":      {c.Configure(ctx, &agentpb.ConfigureRequest{Hostname: "a\nb"}), "hostname"},
		"resolver":       {c.Configure(ctx, &agentpb.ConfigureRequest{Dns: []string{"1.2.3.4\nsearch x"}}), "address"},
		"disk":           {c.Configure(ctx, &agentpb.ConfigureRequest{DiskBytes: 1 << 60}), "disk_bytes"},
		"PIDs":           {c.Configure(ctx, &agentpb.ConfigureRequest{Pids: 1 << 40}), "pids"},
		"machine ID":     {c.Configure(ctx, &agentpb.ConfigureRequest{MachineId: "xyz"}), "machine_id"},
		"disk number":    {c.Mount(ctx, maxDisks, "/x"), "disk"},
		"mount target":   {c.Mount(ctx, 0, "x"), "target"},
		"signal":         {c.Signal(ctx, 0, 65), "signal"},
		"port":           {c.WaitPort(ctx, 0), "port"},
		"stream":         {copyOutput(ctx, c, 7), "stream"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: error %v, want one about %s", name, test.err, test.want)
		}
	}
}

func TestToken(t *testing.T) {
	dial := serve(t, newRecorder(), "127.0.0.1")
	token := NewToken()
	for range 2 {
		c, err := Connect(t.Context(), dial, token)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}
	if _, err := Connect(t.Context(), dial, NewToken()); !errors.Is(err, errDenied) {
		t.Errorf("another token: %v, want %v", err, errDenied)
	}
}

func TestForeignAddress(t *testing.T) {
	dial := serve(t, newRecorder(), "127.0.0.2")
	if _, err := Connect(t.Context(), dial, NewToken()); err == nil {
		t.Error("a connection that is not from the host was let in")
	}
}

// Connections that say nothing must not keep the host out.
func TestSilentConnections(t *testing.T) {
	dial := serve(t, newRecorder(), "127.0.0.1")
	for range maxHandshakes - 1 {
		c, err := dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := Connect(ctx, dial, NewToken())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestConnectCancelled(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	dial := func(ctx context.Context) (net.Conn, error) {
		defer cancel()
		return (&net.Dialer{}).DialContext(ctx, "tcp4", l.Addr().String())
	}
	if _, err := Connect(ctx, dial, NewToken()); err == nil {
		t.Error("Connect succeeded")
	}
}
