package migration

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/pager"
)

func message(kind uint16, payload []byte) []byte {
	return append(appendU16(appendU16(nil, kind), uint16(len(payload))), payload...)
}

func ask(block string, start uint64, length uint32) []byte {
	p := appendU32(appendU64(nil, start), length)
	if block == "" {
		return message(replyPages, p)
	}
	return message(replyPagesID, appendName(p, block))
}

// What a QEMU that was taken over may say ends it, and nothing else.
func TestHostileQEMU(t *testing.T) {
	for name, data := range map[string][]byte{
		"unknown message":     message(99, nil),
		"wrong length":        message(replyPages, []byte{1}),
		"no block named":      ask("", 0, PageSize),
		"unknown block":       ask("disk", 0, PageSize),
		"behind the end":      ask("mem", 16*PageSize, PageSize),
		"beyond the end":      ask("mem", 15*PageSize, 2*PageSize),
		"far away":            ask("mem", ^uint64(0)-PageSize+1, PageSize),
		"too much":            ask("mem", 0, 1<<31),
		"not a page":          ask("mem", 1, PageSize),
		"nothing":             ask("mem", 0, 0),
		"name longer than it": message(replyPagesID, append(appendU32(appendU64(nil, 0), PageSize), 200, 'm')),
		"end before the end":  message(replyShut, []byte{0, 0, 0, 0}),
		"failure":             message(replyShut, []byte{0, 0, 0, 1}),
	} {
		t.Run(name, func(t *testing.T) {
			qemu, killed, served := fake(t, nil)
			if _, err := qemu.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := <-served; err == nil {
				t.Error("no error")
			}
			if !killed.Load() {
				t.Error("QEMU was not killed")
			}
		})
	}
}

// Whoever cannot be killed keeps its connection.
func TestNotKilled(t *testing.T) {
	refused := errors.New("refused")
	qemu, _, served := fake(t, func(c *Config) { c.Kill = func(context.Context) error { return refused } })
	if _, err := qemu.Write(message(99, nil)); err != nil {
		t.Fatal(err)
	}
	if err := <-served; !errors.Is(err, ErrNotKilled) || !errors.Is(err, refused) {
		t.Error(err)
	}
	if err := qemu.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, qemu); !errorIsTimeout(err) {
		t.Errorf("the connection is closed: %v", err)
	}
}

func errorIsTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// A page goes out once, however often it is asked for.
func TestOncePerPage(t *testing.T) {
	var got atomic.Int64
	qemu, _, _ := fake(t, func(c *Config) { c.Memory = counting{c.Memory, &got} })
	for range 3 {
		if _, err := qemu.Write(append(ask("mem", 0, PageSize), ask("", PageSize, PageSize)...)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := qemu.Write(ask("bios", 3*PageSize, PageSize)); err != nil {
		t.Fatal(err)
	}
	// The answer to the last request shows that the others were looked at.
	want := appendName(appendU64(nil, 3*PageSize|flagZero), "bios")
	if err := until(qemu, want); err != nil {
		t.Fatal(err)
	}
	if got.Load() != 2 {
		t.Errorf("%d pages were read for two", got.Load())
	}
}

// until reads until something comes.
func until(r io.Reader, what []byte) error {
	var all []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(all, what) {
		n, err := r.Read(buf)
		if err != nil {
			return err
		}
		all = append(all, buf[:n]...)
	}
	return nil
}

type counting struct {
	pager.Source
	n *atomic.Int64
}

func (c counting) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(1)
	return c.Source.ReadAt(p, off)
}

// fake serves a QEMU that is our end of a socket.
func fake(t *testing.T, change func(*Config)) (qemu *net.UnixConn, killed *atomic.Bool, served chan error) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if qemu, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	mem := bytes.Repeat([]byte{1}, 16*PageSize)
	src, err := pager.NewLayered(int64(len(mem)), pager.Layer{Reader: bytes.NewReader(mem), Extents: []pager.Extent{{Length: int64(len(mem))}}})
	if err != nil {
		t.Fatal(err)
	}
	killed = new(atomic.Bool)
	cfg := Config{State: example(), Block: "mem", Memory: src, Conn: conn, Kill: func(context.Context) error {
		killed.Store(true)
		return nil
	}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		served <- s.Serve(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = qemu.Close()
		_ = conn.Close()
	})
	return qemu, killed, served
}

// The return path never yields a request that is not checked.
func FuzzReturnPath(f *testing.F) {
	f.Add(append(ask("mem", 0, PageSize), ask("", PageSize, PageSize)...))
	f.Add(append(message(replyPong, make([]byte, 4)), message(replyShut, make([]byte, 4))...))
	f.Add(message(replySwitchAc, nil))
	state := example()
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newReplies(bytes.NewReader(data))
		for {
			m, err := r.next()
			if err != nil {
				return
			}
			if m.kind != replyPages && m.kind != replyPagesID {
				continue
			}
			block, ok := state.Block(m.block)
			if !ok || state.Blocks[block].check(m) != nil {
				continue
			}
			if m.length == 0 || m.start%PageSize != 0 || m.start+m.length > state.Blocks[block].Size {
				t.Fatalf("request %+v", m)
			}
		}
	})
}
