package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"knative.dev/serving/pkg/client/clientset/versioned"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/api"
	"github.com/skep-dev/skep/internal/fleet"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/node/logs"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/serving"
)

// start starts the parts, those below first. The listeners come before all
// else: a port that is taken is said at once.
func (d *Daemon) start(ctx context.Context) error {
	cfg, log := d.cfg, d.cfg.Log
	listeners, err := d.listen(ctx)
	if err != nil {
		return err
	}

	j, err := journal.Open(ctx, filepath.Join(cfg.Data, "node.db"))
	if err != nil {
		return err
	}
	d.onStop("journal", func(context.Context) error { return j.Close() })
	id, err := j.Identity(ctx, newNodeID)
	if err != nil {
		return err
	}

	// The API server takes longest: the rest starts meanwhile.
	type apiResult struct {
		server *api.Server
		err    error
	}
	apiReady := make(chan apiResult, 1)
	go func() {
		s, err := api.Start(context.WithoutCancel(ctx), api.Config{
			Dir: filepath.Join(cfg.Data, "api"), Listen: cfg.APIListen,
			Kubeconfig: filepath.Join(cfg.Run, kubeconfig), Annotations: serving.ValidateAnnotations, Log: log,
		})
		apiReady <- apiResult{s, err}
	}()
	lower, err := d.startNode(ctx, id, j)
	r := <-apiReady
	if r.server != nil {
		d.onStop("api", r.server.Close)
		go func() {
			<-r.server.Done()
			d.failed <- errors.New("the API server has stopped")
		}()
	}
	if errors.Is(r.err, syscall.EADDRINUSE) {
		r.err = errTaken("api-listen", cfg.APIListen)
	}
	if err := errors.Join(err, r.err); err != nil {
		return err
	}
	return d.startControl(ctx, r.server, lower, listeners)
}

// lower is the node's half of the daemon.
type lower struct {
	node     *node.Node
	images   *image.Store
	logs     *logs.Store
	catalog  *snapshots.Catalog // nil without snapshots
	events   *eventRelay
	driver   string // the default
	registry *prometheus.Registry
	id       string // NodeID
}

func (d *Daemon) startNode(ctx context.Context, id string, j *journal.Journal) (*lower, error) {
	cfg := d.cfg
	l := &lower{logs: logs.New(filepath.Join(cfg.Data, "logs")), registry: prometheus.NewRegistry(), id: id}
	l.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	snapshot, err := cfg.profile()
	if err != nil {
		return nil, err
	}
	l.images, err = image.Open(image.Config{Dir: filepath.Join(cfg.Data, "images"), MaxImageBytes: cfg.ImageBytes, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	// Closed last of the node's parts, and also if one of those does not open.
	d.onStop("images", func(context.Context) error { return l.images.Close() })
	if !snapshot.off() {
		if err := d.startSnapshots(ctx, l, j); err != nil {
			return nil, err
		}
	}
	drivers, missing := newDrivers(cfg)
	// Sandboxes that an earlier run left are removed before their networks:
	// a namespace lives as long as a process in it.
	var networks lateNetworks
	l.node, err = node.Open(ctx, node.Config{
		Dir: filepath.Join(cfg.Data, "sandboxes"), ID: id, Drivers: drivers, Missing: missing, Journal: j,
		Images: l.images, Networks: &networks, Logs: l.logs, Snapshots: l.catalog, PoolMemory: cfg.SnapshotPoolMemory, Log: cfg.Log, Registerer: l.registry,
	})
	if err != nil {
		return nil, err
	}
	// The node first, also if what follows fails.
	d.onStop("network", networks.close)
	d.onStop("node", l.node.Close)
	l.driver, err = chooseDriver(ctx, cfg, drivers, missing, l.node.Probe)
	if err != nil {
		return nil, err
	}
	manager, err := network.New(ctx, network.Config{
		Dir: filepath.Join(cfg.Run, "networks"), NodeID: id, Uplinks: cfg.Uplinks, Log: cfg.Log,
		Pools: poolSizes(drivers, l.driver, cfg.PoolSize),
	})
	if err != nil {
		return nil, err
	}
	networks.Manager = manager
	return l, nil
}

// launcher is a node as the fleet sees it.
type launcher struct{ *node.Node }

func (l launcher) Launch(ctx context.Context, spec node.Launch) (fleet.Instance, error) {
	i, err := l.Node.Launch(ctx, spec)
	if err != nil {
		return nil, err // no pointer in an interface
	}
	return i, nil
}

// lateNetworks lets the node be opened before the network is.
type lateNetworks struct{ *network.Manager }

func (n *lateNetworks) close(ctx context.Context) error {
	if n.Manager == nil {
		return nil
	}
	return n.Manager.Close(ctx)
}

func (d *Daemon) startControl(ctx context.Context, server *api.Server, l *lower, at *listeners) error {
	cfg, log := d.cfg, d.cfg.Log
	options, err := cfg.snapshotOptions()
	if err != nil {
		return err
	}
	if d, err := l.node.Driver(l.driver); err == nil {
		if why := cannotRestore(options, l.driver, d.Capabilities()); why != "" {
			log.Warn("snapshots: " + why)
		}
	}
	var f *fleet.Fleet
	g := gateway.New(gateway.Config{
		Log: log, Registerer: l.registry,
		OnDemand: func(key gateway.RevisionKey) { f.Poke(key) },
		OnDialError: func(key gateway.RevisionKey, id string, err error) {
			log.Warn("dial instance", "revision", key.String(), "id", id, "error", err)
		},
	})
	clients := rest.CopyConfig(server.ClientConfig())
	clients.WarningHandler = rest.NoWarnings{} // for users, who get them too
	clients.QPS, clients.Burst = 200, 400      // in-process: no reason to hold back
	knative, err := versioned.NewForConfig(clients)
	if err != nil {
		return fmt.Errorf("knative client: %w", err)
	}
	kube, err := kubernetes.NewForConfig(clients)
	if err != nil {
		return fmt.Errorf("kubernetes client: %w", err)
	}
	var c *serving.Controller
	f = fleet.New(fleet.Config{Node: launcher{l.node}, Traffic: g, Log: log, OnEvent: func(e fleet.Event) { c.OnEvent(e) }})
	c = serving.New(serving.Config{
		Knative: knative, Kube: kube, Fleet: f, Router: g, Logs: l.logs, Log: log,
		Images:    &imageSource{store: l.images, registry: at.registry.Addr().String(), insecure: cfg.InsecureRegistries},
		Domain:    cfg.domain(at.gateway.Addr()),
		Defaults:  serving.Defaults{Driver: l.driver, IdleAfter: cfg.IdleAfter, Snapshot: options},
		Snapshots: remover(l.catalog),
	})
	if l.events != nil {
		l.events.to(c.OnEvent)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	wait, err := c.Run(running)
	if err != nil {
		cancel()
		return err
	}
	var collecting sync.WaitGroup
	collecting.Go(func() { collect(running, l.images, cfg.StoreBytes, log) })
	if l.catalog != nil {
		collecting.Go(func() { collectSnapshots(running, l.catalog, log) })
	}
	// Down: no new work, requests drained, instances stopped, then the rest.
	d.onStop("controller's work", func(ctx context.Context) error {
		return waitFor(ctx, func() { wait(); collecting.Wait() })
	})
	d.onStop("instances", func(ctx context.Context) error {
		_ = f.Close(ctx) // what has not drained in time is killed
		return l.node.Close(context.WithoutCancel(ctx))
	})
	d.onStop("controller", func(context.Context) error { cancel(); return nil })

	d.serve("registry", at.registry, safeServer(l.images.RegistryHandler(ownNames(at.registry.Addr().String())...)))
	d.serve("metrics", at.metrics, safeServer(metricsHandler(l.registry)))
	d.serve("admin", at.admin, safeServer(admin.Handler(&backend{lower: l, fleet: f, gateway: g, cfg: cfg}, log)))
	d.onStop("requests", g.Drain) // WebSockets, too, which the server does not know of
	d.serveGateway(at.gateway, g)
	at.taken = true

	d.endpoints = Endpoints{
		PID: os.Getpid(), NodeID: l.id, Gateway: at.gateway.Addr().String(), API: server.URL(),
		Registry: at.registry.Addr().String(), Metrics: at.metrics.Addr().String(),
		Domain: cfg.Domain, Kubeconfig: filepath.Join(cfg.Run, kubeconfig), Admin: filepath.Join(cfg.Run, adminSocket),
	}
	if err := d.endpoints.write(cfg.Run); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	d.onStop("endpoints", func(context.Context) error { return os.Remove(filepath.Join(cfg.Run, endpointsFile)) })
	return nil
}

// serve serves until the daemon stops.
func (d *Daemon) serve(name string, l net.Listener, s *http.Server) {
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.failed <- fmt.Errorf("serve %s: %w", name, err)
		}
	}()
	d.onStop(name, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			return s.Close() // followers of logs, for example, never end
		}
		return nil
	})
}

// serveGateway serves until the daemon stops, and then lets requests end for
// as long as the daemon may take to stop.
func (d *Daemon) serveGateway(l net.Listener, g *gateway.Gateway) {
	s := gateway.NewServer(g, d.cfg.Log)
	go func() {
		if err := s.Serve(g.FastLane(l)); !errors.Is(err, http.ErrServerClosed) {
			d.failed <- fmt.Errorf("serve gateway: %w", err)
		}
	}()
	d.onStop("gateway", s.Shutdown)
}

func poolSizes(drivers []sandbox.Driver, chosen string, n int) map[sandbox.LinkKind]int {
	for _, d := range drivers {
		if d.Name() == chosen {
			return map[sandbox.LinkKind]int{d.Capabilities().Link: n}
		}
	}
	return nil
}
