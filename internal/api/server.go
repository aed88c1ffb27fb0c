package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/skep-dev/skep/internal/api/collector"
	"github.com/skep-dev/skep/internal/api/kinestore"
)

// DefaultListen is where the API is served unless said otherwise.
const DefaultListen = "127.0.0.1:6443"

// startTimeout bounds Start; a first start takes about a second.
const startTimeout = 60 * time.Second

// hookTimeout bounds waiting for a starting server that is to be stopped.
const hookTimeout = 10 * time.Second

// ErrLocked is what Start returns where another process serves the folder.
var ErrLocked = kinestore.ErrLocked

// Config says where the server keeps its things and where it listens.
type Config struct {
	// Dir holds the database, the token and the certificate authority; it is
	// made if need be, for the owner alone. One server at a time.
	Dir string
	// Listen is the TCP address; DefaultListen if empty. Port 0 takes a free
	// one.
	Listen string
	// Kubeconfig is the file to write for kubectl and kn, readable by its
	// owner alone; none if empty.
	Kubeconfig string
	// Annotations checks the annotations of revision templates at admission;
	// nil checks nothing.
	Annotations func(map[string]string) error
	// Log takes what the server has to say; slog.Default() if nil. The
	// libraries inside log process-wide: with several servers in one process
	// the newest one's logger takes it all.
	Log *slog.Logger
}

// Server is a running API server.
type Server struct {
	log      *slog.Logger
	url      string
	loopback *rest.Config
	store    *kinestore.Store

	healthy       func(context.Context) error // waits for the post-start hooks
	stopServing   context.CancelFunc
	served        chan struct{} // closed when the server has stopped
	serveErr      error         // valid once served is closed
	stopCollector context.CancelFunc
	collected     chan struct{}

	closing  sync.Once
	finished chan struct{}
}

// Start starts the server and returns when it is ready: Knative's kinds are
// served and the namespaces default and kube-system exist. The caller must
// Close it; ctx bounds the start alone.
func Start(ctx context.Context, config Config) (_ *Server, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()

	if config.Listen == "" {
		config.Listen = DefaultListen
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Dir == "" {
		return nil, errors.New("API server: no folder given")
	}
	routeLibraryLogs(config.Log)
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make API folder: %w", err)
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("locate API folder: %w", err)
	}

	s := &Server{log: config.Log, finished: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		}
	}()
	// The folder's lock comes first: all below may then write to it.
	if s.store, err = kinestore.Open(ctx, dir); err != nil {
		return nil, err
	}
	token, err := loadToken(dir)
	if err != nil {
		return nil, err
	}
	ca, err := loadAuthority(dir, time.Now())
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the API on %s: %w: choose another address", config.Listen, err)
	}
	built, err := assemble(listener, s.store.Endpoint(), token, ca, config.Annotations)
	if err != nil {
		listener.Close()
		return nil, err
	}
	generic := built.apiextensions.GenericAPIServer
	s.loopback = rest.CopyConfig(generic.LoopbackClientConfig)
	s.url = s.loopback.Host
	client, err := coreClient(s.loopback)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		generic.Destroy()
		listener.Close()
		return nil, fmt.Errorf("start API server: %w", err)
	}
	s.healthy = func(ctx context.Context) error { return awaitHealthy(ctx, client, s.served) }
	s.serve(ctx, built)

	if err := s.healthy(ctx); err != nil {
		return nil, err
	}
	if err := installDefinitions(ctx, s.loopback); err != nil {
		return nil, err
	}
	if err := makeNamespaces(ctx, s.loopback); err != nil {
		return nil, err
	}
	if err := s.collect(ctx, built); err != nil {
		return nil, err
	}
	if config.Kubeconfig != "" {
		if err := writeKubeconfig(config.Kubeconfig, s.url, token, ca.certPEM); err != nil {
			return nil, err
		}
	}
	s.log.Info("API server ready", "url", s.url, "took", time.Since(began).Round(time.Millisecond))
	return s, nil
}

func (s *Server) serve(ctx context.Context, built *assembly) {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopServing, s.served = stop, make(chan struct{})
	prepared := built.apiextensions.GenericAPIServer.PrepareRun()
	go func() {
		defer close(s.served)
		s.serveErr = prepared.RunWithContext(run)
	}()
}

func (s *Server) collect(ctx context.Context, built *assembly) error {
	c, err := collector.New(s.loopback, built.apiextensions.Informers.Apiextensions().V1().CustomResourceDefinitions(), s.log)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopCollector, s.collected = stop, make(chan struct{})
	go func() {
		defer close(s.collected)
		c.Run(run)
	}()
	return nil
}

// URL is the server's address, reachable from this machine.
func (s *Server) URL() string { return s.url }

// ClientConfig returns a configuration for clients within this process, which
// may do everything. It is the caller's to change.
func (s *Server) ClientConfig() *rest.Config { return rest.CopyConfig(s.loopback) }

// Done is closed when the server has stopped, by Close or by itself.
func (s *Server) Done() <-chan struct{} { return s.served }

// Close lets requests in flight finish (watches a moment), stops everything
// and closes the database. If ctx ends before, Close returns its error and
// stopping goes on.
func (s *Server) Close(ctx context.Context) error {
	s.closing.Do(func() { go s.stop() })
	select {
	case <-s.finished:
	case <-ctx.Done():
		return fmt.Errorf("close API server: %w", ctx.Err())
	}
	if s.serveErr != nil {
		return fmt.Errorf("API server: %w", s.serveErr)
	}
	return nil
}

// stop ends the parts in the order in which they use one another.
func (s *Server) stop() {
	defer close(s.finished)
	if s.stopCollector != nil {
		s.stopCollector()
		<-s.collected
	}
	if s.stopServing != nil {
		// The machinery ends the process where a post-start hook fails, and
		// one that is stopped before it has done its work does: let them
		// finish, which takes part of a second.
		ctx, cancel := context.WithTimeout(context.Background(), hookTimeout)
		_ = s.healthy(ctx)
		cancel()
		s.stopServing()
		<-s.served
	}
	if s.store != nil {
		s.store.Close()
	}
}
