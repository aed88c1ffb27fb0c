package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skep-dev/skep/internal/gateway"
)

// fixed is an instance that is always there.
type fixed struct{ addr string }

func (fixed) ID() string               { return "bench" }
func (fixed) Start() gateway.StartInfo { return gateway.StartInfo{Kind: gateway.Adopted} }
func (f fixed) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", f.addr)
}

// serveGateway runs the gateway as the daemon has it, metrics included.
func serveGateway(ctx context.Context, listen, to, profile string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	g := gateway.New(gateway.Config{Log: log, Registerer: prometheus.NewRegistry()})
	key := gateway.RevisionKey{Namespace: "default", Name: "hello-00001"}
	g.SetRevision(gateway.Revision{Key: key})
	if err := g.SetRoute(host, key); err != nil {
		return err
	}
	g.AddInstance(key, fixed{to})
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return fmt.Errorf("making -cpuprofile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("profiling: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	srv := gateway.NewServer(g, log)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(g.FastLane(l)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}
