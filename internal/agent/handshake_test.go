package agent

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSuspend(t *testing.T) {
	g := newRecorder()
	dial := serve(t, g, "127.0.0.1")
	token := NewToken()
	c, err := Connect(t.Context(), dial, token)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	rest := func() { g.note("rest") }
	if _, err := Suspend(t.Context(), dial, NewToken(), rest); !errors.Is(err, errDenied) {
		t.Errorf("Suspend with another token: %v, want %v", err, errDenied)
	}
	if _, err := c.Ping(t.Context()); err != nil {
		t.Error("it ended connections all the same")
	}
	m, err := Suspend(t.Context(), dial, token, rest)
	if want := (Marks{Stdout: 7, Stderr: 1 << 40}); err != nil || m != want {
		t.Errorf("Suspend() = %+v, %v; want %+v", m, err, want)
	}
	if _, err := c.Ping(t.Context()); err == nil {
		t.Error("a connection outlived Suspend")
	}
	if c, err = Connect(t.Context(), dial, token); err != nil {
		t.Fatalf("after Suspend: %v", err)
	}
	defer c.Close()
	if _, err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	// The function stands still from when the guest is at rest until somebody
	// wants the agent.
	g.mu.Lock()
	defer g.mu.Unlock()
	if want := []string{"thaw", "suspend", "rest", "freeze", "thaw"}; !slices.Equal(g.notes, want) {
		t.Errorf("in the order %v, want %v", g.notes, want)
	}
}

func TestResume(t *testing.T) {
	g := newRecorder()
	dial := serve(t, g, "127.0.0.1")
	old := NewToken()
	if c, err := Connect(t.Context(), dial, old); err != nil {
		t.Fatal(err)
	} else {
		_ = c.Close()
	}
	want := &Restored{Token: NewToken(), Entropy: [EntropySize]byte{1, 2}, MachineID: [MachineIDSize]byte{3}, Hostname: "other", NewDisks: true}
	if err := Resume(t.Context(), udp(dial), NewToken(), want); !errors.Is(err, errDenied) {
		t.Errorf("Resume with another token: %v, want %v", err, errDenied)
	}
	bad := *want
	bad.Hostname = "bad"
	if err := Resume(t.Context(), udp(dial), old, &bad); err == nil || !strings.Contains(err.Error(), "cannot be that") {
		t.Errorf("Resume when the guest fails: %v", err)
	}
	bad.Hostname = "a b"
	if err := Resume(t.Context(), udp(dial), old, &bad); err == nil || !strings.Contains(err.Error(), "hostname") {
		t.Errorf("Resume with a bad host name: %v", err)
	}
	before := time.Now()
	for range 2 { // as if an answer had been lost
		if err := Resume(t.Context(), udp(dial), old, want); err != nil {
			t.Fatal(err)
		}
	}
	told := g.told()
	if len(told) != 1 {
		t.Fatalf("the guest was told %d times", len(told))
	}
	got := *told[0]
	if got.Wall.Before(before) || got.Wall.After(time.Now()) {
		t.Errorf("it was told that it is %v", got.Wall)
	}
	got.Wall = want.Wall
	if got != *want {
		t.Errorf("got %+v, want %+v", got, *want)
	}
	if _, err := Connect(t.Context(), dial, old); !errors.Is(err, errDenied) {
		t.Errorf("the snapshot's token still opens: %v", err)
	}
	if c, err := Connect(t.Context(), dial, want.Token); err != nil {
		t.Errorf("the new token: %v", err)
	} else {
		_ = c.Close()
	}
}

// A guest that is slow to take its identity in ends up with a fresh time.
func TestResumeLate(t *testing.T) {
	g := newRecorder()
	dial := serve(t, g, "127.0.0.1")
	token := NewToken()
	if c, err := Connect(t.Context(), dial, token); err != nil {
		t.Fatal(err)
	} else {
		_ = c.Close()
	}
	if err := Resume(t.Context(), udp(dial), token, &Restored{Token: NewToken(), Hostname: slowName}); err != nil {
		t.Fatal(err)
	}
	told := g.told()
	if len(told) != 1 {
		t.Fatalf("the guest was told %d times", len(told))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	last := told[0].Wall
	for _, now := range g.clock {
		if !now.After(last) {
			t.Errorf("the clock was set from %v to %v", last, now)
		}
		last = now
	}
	if len(g.clock) > 2 {
		t.Errorf("the clock was set %d times: by times that were old, too", len(g.clock))
	}
	if late := last.Sub(told[0].Wall); late < slowness/2 {
		t.Errorf("the clock was set by what was sent %v after the first datagram, which took %v", late, slowness)
	}
}

// udp dials the UDP port of the same address.
func udp(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return (&net.Dialer{}).DialContext(ctx, "udp4", c.RemoteAddr().String())
	}
}

// FuzzRestored gives the agent arbitrary bytes as a Restored.
func FuzzRestored(f *testing.F) {
	b, err := (&Restored{Hostname: "name", NewDisks: true}).encode(time.Unix(1, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRestored(b)
		if err != nil {
			return
		}
		again, err := r.encode(r.Wall)
		if err != nil {
			t.Fatalf("out of bounds: %v", err)
		}
		if len(again) > len(b) {
			t.Fatalf("%d bytes became %d", len(b), len(again))
		}
		same, err := parseRestored(again)
		if err != nil || *same != *r {
			t.Errorf("%+v became %+v, %v", r, same, err)
		}
	})
}
