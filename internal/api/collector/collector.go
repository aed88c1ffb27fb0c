// Package collector deletes what has lost its owner, as Kubernetes' garbage
// collector does: dependents of a deleted object go after it (background),
// before it (foreground), or are set free (orphan). It also empties deleted
// namespaces. In Kubernetes both are kube-controller-manager's work, which
// cannot be imported.
package collector

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	informers "k8s.io/apiextensions-apiserver/pkg/client/informers/externalversions/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Deletions are few; one slow one should not hold up all.
const workers = 2

// callTimeout bounds every call to the API.
const callTimeout = 30 * time.Second

// kind is a served kind that may own or be owned.
type kind struct {
	resource   schema.GroupVersionResource
	namespaced bool
	stop       context.CancelFunc // ends its watch; nil if not watched
}

// Collector watches all objects, their metadata alone.
type Collector struct {
	client  metadata.Interface
	crds    informers.CustomResourceDefinitionInformer
	log     *slog.Logger
	graph   *graph
	queue   workqueue.TypedRateLimitingInterface[types.UID]
	watches sync.WaitGroup

	mu    sync.Mutex
	kinds map[schema.GroupKind]*kind
}

// The built-in kinds. Events are not watched: they own nothing and nothing
// owns them.
var builtIn = []struct {
	kind, resource      string
	namespaced, watched bool
}{
	{"Namespace", "namespaces", false, true},
	{"Secret", "secrets", true, true},
	{"ConfigMap", "configmaps", true, true},
	{"ServiceAccount", "serviceaccounts", true, true},
	{"Event", "events", true, false},
}

// New makes a collector on the API that config leads to; crds tells it what
// other kinds there are.
func New(config *rest.Config, crds informers.CustomResourceDefinitionInformer, log *slog.Logger) (*Collector, error) {
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make metadata client: %w", err)
	}
	return &Collector{
		client: client,
		crds:   crds,
		log:    log.With("component", "collector"),
		graph:  newGraph(),
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[types.UID]()),
		kinds:  map[schema.GroupKind]*kind{},
	}, nil
}

// Run works until ctx ends, and returns when all it started has ended.
func (c *Collector) Run(ctx context.Context) {
	defer c.watches.Wait()
	for _, b := range builtIn {
		c.serve(ctx, schema.GroupKind{Kind: b.kind}, corev1.SchemeGroupVersion.WithResource(b.resource), b.namespaced, b.watched)
	}
	registration, err := c.crds.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.defined(ctx, obj) },
		UpdateFunc: func(_, obj any) { c.defined(ctx, obj) },
		DeleteFunc: c.undefined,
	})
	if err != nil {
		c.log.Error("Garbage is not collected for custom resources", "error", err)
	} else {
		defer func() { _ = c.crds.Informer().RemoveEventHandler(registration) }()
	}
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for c.work(ctx) {
			}
		})
	}
	<-ctx.Done()
	c.queue.ShutDown()
	working.Wait()
}

func (c *Collector) work(ctx context.Context) bool {
	uid, quit := c.queue.Get()
	if quit {
		return false
	}
	defer c.queue.Done(uid)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	again, err := c.process(call, uid)
	switch {
	case err != nil && ctx.Err() == nil:
		c.log.Debug("Collecting garbage will be tried again", "uid", uid, "error", err)
		c.queue.AddRateLimited(uid)
	case again:
		c.queue.AddRateLimited(uid)
	default:
		c.queue.Forget(uid)
	}
	return true
}

// defined begins to watch a custom resource's objects, once it is served.
func (c *Collector) defined(ctx context.Context, obj any) {
	crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
	if !ok || crd.DeletionTimestamp != nil {
		return
	}
	established := false
	for _, condition := range crd.Status.Conditions {
		if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
			established = true
		}
	}
	if !established {
		return
	}
	for _, version := range crd.Spec.Versions {
		if !version.Served {
			continue
		}
		group := schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}
		resource := schema.GroupVersionResource{Group: crd.Spec.Group, Version: version.Name, Resource: crd.Spec.Names.Plural}
		c.serve(ctx, group, resource, crd.Spec.Scope == apiextensionsv1.NamespaceScoped, true)
		return
	}
}

func (c *Collector) undefined(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return
	}
	group := schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}
	c.mu.Lock()
	k := c.kinds[group]
	delete(c.kinds, group)
	c.mu.Unlock()
	if k == nil {
		return
	}
	if k.stop != nil {
		k.stop()
	}
	for _, uid := range c.graph.of(k.resource) {
		c.gone(uid)
	}
}

// serve makes a kind known and watches its objects; again is no harm.
func (c *Collector) serve(ctx context.Context, group schema.GroupKind, resource schema.GroupVersionResource, namespaced, watched bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.kinds[group]; known != nil {
		if known.resource == resource {
			return
		}
		if known.stop != nil {
			known.stop()
		}
	}
	k := &kind{resource: resource, namespaced: namespaced}
	c.kinds[group] = k
	if !watched {
		return
	}
	var run context.Context
	run, k.stop = context.WithCancel(ctx)
	objects := c.client.Resource(resource)
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return objects.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return objects.Watch(ctx, options)
			},
		},
		ObjectType: &metav1.PartialObjectMetadata{},
		Transform:  strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { c.seen(resource, obj) },
			UpdateFunc: func(_, obj any) { c.seen(resource, obj) },
			DeleteFunc: func(obj any) {
				if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = tombstone.Obj
				}
				if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
					c.gone(m.UID)
				}
			},
		},
	})
	c.watches.Go(func() { controller.RunWithContext(run) })
}

// strip drops what the collector does not need to remember.
func strip(obj any) (any, error) {
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
		m.ManagedFields, m.Annotations, m.Labels = nil, nil, nil
	}
	return obj, nil
}

func (c *Collector) seen(resource schema.GroupVersionResource, obj any) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return
	}
	c.graph.put(nodeOf(resource, m))
	if m.DeletionTimestamp != nil || len(m.OwnerReferences) > 0 {
		c.queue.Add(m.UID)
	}
	if m.DeletionTimestamp != nil {
		for _, owner := range m.OwnerReferences {
			c.queue.Add(owner.UID)
		}
	}
}

func (c *Collector) gone(uid types.UID) {
	n := c.graph.remove(uid)
	for _, dependent := range c.graph.owned(uid) {
		c.queue.Add(dependent.uid)
	}
	if n != nil { // an owner may wait for it
		for _, owner := range n.owners {
			c.queue.Add(owner.UID)
		}
	}
}

func nodeOf(resource schema.GroupVersionResource, m *metav1.PartialObjectMetadata) *node {
	return &node{
		resource: resource, namespace: m.Namespace, name: m.Name, uid: m.UID,
		owners: m.OwnerReferences, finalizers: m.Finalizers, deleting: m.DeletionTimestamp != nil,
	}
}
