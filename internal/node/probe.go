package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Probe says when an instance is ready. The zero value means: as soon as its
// port accepts a connection.
type Probe struct {
	HTTPPath string // GET this path until the status is 2xx or 3xx
	Port     int    // 0 means the instance's port
	Headers  http.Header
	Timeout  time.Duration // of one try; 0 means 1 s
}

// awaitReady waits until the probe succeeds, the process ends or ctx does.
func (i *Instance) awaitReady(ctx context.Context) error {
	probing, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- i.probe(probing) }()
	exited := make(chan sandbox.Exit, 1)
	go func() {
		if exit, err := i.sandbox.Wait(probing); err == nil {
			exited <- exit
		}
	}()
	select {
	case err := <-ready:
		if err == nil {
			return nil
		}
		// A process that dies takes its port along: give its end a moment
		// to be known, it is the better reason.
		select {
		case exit := <-exited:
			return i.exitError(exit, "before it was ready")
		case <-time.After(200 * time.Millisecond):
		}
		return &StartError{Reason: ReasonProbe, Err: err, Tail: i.log.Tail()}
	case exit := <-exited:
		return i.exitError(exit, "before it was ready")
	}
}

// probe tries again and again, first quickly, then less so. It returns the
// last try's error when ctx ends.
func (i *Instance) probe(ctx context.Context) error {
	l := &i.launch
	port := l.Port
	if l.Probe.Port != 0 {
		port = l.Probe.Port
	}
	began := time.Now()
	// A restored function listened when it was saved.
	if w, ok := i.sandbox.(sandbox.PortWaiter); ok && i.kind != Restored {
		if err := w.WaitPort(ctx, port); err != nil && ctx.Err() == nil {
			return fmt.Errorf("wait for port %d: %w", port, err)
		}
	}
	last := errors.New("no connection")
	for wait := time.Millisecond; ; wait = min(wait*5/4, 100*time.Millisecond) {
		err := i.probeOnce(ctx, port)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: the readiness probe of port %d failed: %w (is the function listening on 0.0.0.0:$PORT?)",
				time.Since(began).Round(100*time.Millisecond), port, last)
		case <-time.After(wait):
		}
	}
}

func (i *Instance) probeOnce(ctx context.Context, port int) error {
	p := &i.launch.Probe
	timeout := p.Timeout
	if timeout <= 0 {
		timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if p.HTTPPath == "" {
		c, err := i.sandbox.Dial(ctx, port)
		if err != nil {
			return err
		}
		if i.kind == Restored && port == i.launch.Port {
			return i.spare.put(c)
		}
		return c.Close()
	}
	tr := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return i.sandbox.Dial(ctx, port) },
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://function"+p.HTTPPath, nil)
	if err != nil {
		return fmt.Errorf("readiness probe: path %q: %w", p.HTTPPath, err)
	}
	for k, v := range p.Headers {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "kube-probe/skep")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("GET %s answered %s", p.HTTPPath, resp.Status)
	}
	return nil
}
