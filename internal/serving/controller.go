// Package serving makes what Knative Services ask for: it turns each change
// of a Service into a Revision, proves it on the node, sends the traffic to
// it, and writes back honest conditions and events.
package serving

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	apiserving "knative.dev/serving/pkg/apis/serving"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
	"knative.dev/serving/pkg/client/clientset/versioned"
	knscheme "knative.dev/serving/pkg/client/clientset/versioned/scheme"
	"knative.dev/serving/pkg/client/informers/externalversions"
	listers "knative.dev/serving/pkg/client/listers/serving/v1"

	"github.com/skep-dev/skep/internal/fleet"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/image"
)

// Fleet runs the instances of revisions.
type Fleet interface {
	Set(fleet.Spec)
	Ensure(ctx context.Context, key gateway.RevisionKey) error
	Ready(key gateway.RevisionKey) int
	// Remove takes a revision away at once; its instances drain until gone
	// is closed.
	Remove(key gateway.RevisionKey) (gone <-chan struct{})
}

// Router sends requests to revisions.
type Router interface {
	SetRevision(gateway.Revision)
	RemoveRevision(gateway.RevisionKey)
	SetRoute(host string, key gateway.RevisionKey) error
	RemoveRoute(host string)
	Stats(gateway.RevisionKey) (gateway.Stats, bool)
}

// Images resolves references to digests and fetches what is missing.
type Images interface {
	// Ensure returns the image, pulled if it is not in the store, or always.
	Ensure(ctx context.Context, ref string, always bool) (*image.Image, error)
	// Hold keeps an image on the node, across restarts, until Unhold.
	Hold(ctx context.Context, holder, digest string) error
	Unhold(ctx context.Context, holder string) error
	Holders() []string
}

// LogRemover forgets what a revision printed.
type LogRemover interface {
	Remove(namespace, revision string) error
}

// SnapshotRemover forgets a revision's snapshots. It does not block.
type SnapshotRemover interface {
	Forget(namespace, revision string)
}

// Config says what a Controller works with.
type Config struct {
	Knative versioned.Interface
	Kube    kubernetes.Interface
	Fleet   Fleet
	Router  Router
	Images  Images
	Logs    LogRemover
	// Snapshots forgets those of a revision; nil: there are none.
	Snapshots SnapshotRemover
	Domain    Domain
	Defaults  Defaults
	Log       *slog.Logger
}

const workers = 4

// Controller reconciles Services until its context ends.
type Controller struct {
	cfg       Config
	events    record.EventRecorder
	queue     workqueue.TypedRateLimitingInterface[cache.ObjectName]
	services  listers.ServiceLister
	revisions listers.RevisionLister

	mu     sync.Mutex
	served map[cache.ObjectName]*served
	work   sync.WaitGroup // roll-outs and retirements

	places  sync.Mutex // whoever changes what is deployed; short
	tenants map[gateway.RevisionKey]*tenant
}

// served is what runs for one Service.
type served struct {
	mu      sync.Mutex // one reconciliation of a service at a time
	uid     types.UID  // of the service: a new one of the same name is another
	routed  string     // revision that takes the requests, "" if none
	tenant  *tenant    // its deployment
	rollout *rollout   // the newest, possibly over
}

// New returns a controller. Run makes it work.
func New(cfg Config) *Controller {
	return &Controller{
		cfg:    cfg,
		served: map[cache.ObjectName]*served{}, tenants: map[gateway.RevisionKey]*tenant{},
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](100*time.Millisecond, time.Minute)),
	}
}

// Run works until ctx ends. It returns once the first pass over the Services
// that exist is done and then goes on in the background; wait for the end
// with the returned function.
func (c *Controller) Run(ctx context.Context) (wait func(), err error) {
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.cfg.Kube.CoreV1().Events("")})
	all := runtime.NewScheme()
	_ = scheme.AddToScheme(all)
	_ = knscheme.AddToScheme(all)
	c.events = events.NewRecorder(all, corev1.EventSource{Component: "skep"})

	factory := externalversions.NewSharedInformerFactory(c.cfg.Knative, 0)
	serving := factory.Serving().V1()
	c.services, c.revisions = serving.Services().Lister(), serving.Revisions().Lister()
	_, err = serving.Services().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    c.enqueue,
		UpdateFunc: func(_, now any) { c.enqueue(now) },
		DeleteFunc: c.enqueue,
	})
	if err != nil {
		return nil, fmt.Errorf("watch services: %w", err)
	}
	revisions := serving.Revisions().Informer()
	if _, err := revisions.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: c.revisionDeleted}); err != nil {
		return nil, fmt.Errorf("watch revisions: %w", err)
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), serving.Services().Informer().HasSynced, revisions.HasSynced) {
		return nil, fmt.Errorf("watch services: %w", context.Cause(ctx))
	}
	if err := c.resume(ctx); err != nil {
		return nil, err
	}
	var loops sync.WaitGroup
	for range workers {
		loops.Go(func() { c.loop(ctx) })
	}
	context.AfterFunc(ctx, c.queue.ShutDown)
	return func() {
		loops.Wait()
		c.work.Wait()
		events.Shutdown()
		factory.Shutdown()
	}, nil
}

func (c *Controller) enqueue(obj any) {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	if s, ok := obj.(*v1.Service); ok {
		c.queue.Add(cache.ObjectName{Namespace: s.Namespace, Name: s.Name})
	}
}

// revisionDeleted removes what a revision printed once it is off the record.
func (c *Controller) revisionDeleted(obj any) {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	if r, ok := obj.(*v1.Revision); ok {
		c.places.Lock()
		defer c.places.Unlock()
		c.forgetLogs(gateway.RevisionKey{Namespace: r.Namespace, Name: r.Name})
	}
}

func (c *Controller) loop(ctx context.Context) {
	for {
		key, stop := c.queue.Get()
		if stop {
			return
		}
		if err := c.reconcile(ctx, key); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("reconcile service, will try again", "namespace", key.Namespace, "service", key.Name, "error", err)
			c.queue.AddRateLimited(key)
		} else {
			c.queue.Forget(key)
		}
		c.queue.Done(key)
	}
}

// servedOf returns what runs for the service with this UID. That of an
// earlier one of the same name is ended.
func (c *Controller) servedOf(key cache.ObjectName, uid types.UID) *served {
	c.mu.Lock()
	s := c.served[key]
	c.mu.Unlock()
	if s != nil && s.uid == uid {
		return s
	}
	c.remove(key)
	s = &served{uid: uid}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served[key] = s
	return s
}

// OnEvent tells the owner of a service what happened to its instances. It is
// a fleet.Config.OnEvent.
func (c *Controller) OnEvent(e fleet.Event) {
	if c.revisions == nil {
		return // not running yet
	}
	if rev, err := c.revisions.Revisions(e.Key.Namespace).Get(e.Key.Name); err == nil {
		c.event(rev, corev1.EventTypeWarning, e.Reason, e.Err.Error())
	}
}

// event records an event of a revision, and of its service, where people look.
func (c *Controller) event(rev *v1.Revision, kind, reason, message string) {
	message = clip(message, maxEvent)
	c.events.Event(rev, kind, reason, message)
	s, err := c.services.Services(rev.Namespace).Get(rev.Labels[apiserving.ServiceLabelKey])
	if err == nil {
		c.events.Event(s, kind, reason, message)
	}
}

const maxEvent = 1000 // bytes; Kubernetes takes 1024
