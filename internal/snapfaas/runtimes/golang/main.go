// Command golang is Skep's runtime for SnapFaaS's tools that runs an app of
// any compiled language in the guest: the executable /srv/workload, with which
// it speaks the protocol of ../main.py over standard input and output. The app
// says "app-ready" when it has initialised.
//
// It is compiled into runtime images from this file alone, so it needs nothing
// but the standard library.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
)

// Where it listens and where the app is.
var (
	port   = getenv("SKEP_RUNTIME_PORT", "1234")
	folder = getenv("SKEP_RUNTIME_APP", "/srv")
)

const (
	limit    = 16 << 20 // bytes of a message
	maxError = 8 << 10
)

func getenv(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

type message struct {
	Type    string          `json:"type"`
	Runtime string          `json:"runtime,omitempty"`
	Error   string          `json:"error,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
}

// app is the program, nil before it is loaded.
type app struct {
	in  io.Writer
	out io.Reader
}

func main() {
	fmt.Fprintln(os.Stderr, "runtime:", run(context.Background()))
	os.Exit(1)
}

// run serves until that fails.
func run(ctx context.Context) error {
	var a *app
	if _, err := os.Stat(program()); err == nil { // it is part of the root file system
		if a, err = load(ctx); err != nil {
			return err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", ":"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := serve(ctx, c, &a); err != nil {
			fmt.Fprintln(os.Stderr, "connection:", err)
		}
		_ = c.Close()
	}
}

func program() string { return filepath.Join(folder, "workload") }

func load(ctx context.Context) (*app, error) {
	cmd := exec.CommandContext(ctx, program())
	cmd.Dir = folder
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	a := &app{in: in, out: out}
	m, err := receive(a.out)
	if err == nil && m.Type != "app-ready" {
		err = fmt.Errorf("it says %.100q %s instead of app-ready", m.Type, m.Error)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("%s: %w (%w)", program(), err, cmd.Wait())
	}
	return a, nil
}

func serve(ctx context.Context, c net.Conn, a **app) error {
	hello := message{Type: "runtime-ready", Runtime: "go"}
	if *a != nil {
		hello.Type = "app-ready"
	}
	if err := send(c, hello); err != nil {
		return err
	}
	for {
		m, err := receive(c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(c, answer(ctx, m, a)); err != nil {
			return err
		}
	}
}

func answer(ctx context.Context, m message, a **app) message {
	var err error
	switch m.Type {
	case "load-app":
		if *a == nil {
			*a, err = load(ctx)
		}
		if err == nil {
			return message{Type: "app-ready"}
		}
	case "request":
		if *a == nil {
			err = errors.New("no app is loaded")
			break
		}
		if err = send((*a).in, m); err != nil {
			break
		}
		var reply message
		if reply, err = receive((*a).out); err == nil {
			return reply
		}
		// Without the app nothing can be answered: the host starts anew.
		fmt.Fprintln(os.Stderr, "runtime: the app has ended:", err)
		os.Exit(1)
	default:
		err = fmt.Errorf("unknown message %.100q", m.Type)
	}
	s := err.Error()
	return message{Type: "error", Error: s[:min(len(s), maxError)]}
}

func send(w io.Writer, m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > limit {
		return fmt.Errorf("a message of %d bytes, the limit is %d", len(b), limit)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receive(r io.Reader) (m message, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return m, fmt.Errorf("a message of %d bytes, the limit is %d", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}
