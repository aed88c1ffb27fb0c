package gateway

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Defaults of a Revision and a Config.
const (
	DefaultTimeout      = 300 * time.Second
	DefaultQueueDepth   = 1000
	DefaultQueueTimeout = 60 * time.Second
	DefaultDialTimeout  = 10 * time.Second
	DefaultMaxRetries   = 3
)

// RevisionKey names a revision.
type RevisionKey struct{ Namespace, Name string }

// String is "namespace/name".
func (k RevisionKey) String() string { return k.Namespace + "/" + k.Name }

// Protocol is what an instance speaks.
type Protocol string

// The protocols. WebSockets always go over HTTP/1.1, an instance of an h2c
// revision included.
const (
	HTTP1 Protocol = "http1"
	H2C   Protocol = "h2c" // HTTP/2 without TLS, with prior knowledge
)

// Revision is how requests to the instances of one revision are treated.
// Zero values mean the defaults.
type Revision struct {
	Key RevisionKey
	// ContainerConcurrency is how many requests an instance may have at
	// once: never one more, hijacked and streaming ones included. 0 is any
	// number.
	ContainerConcurrency int
	// Timeout bounds a whole request, from when an instance was found to
	// the last byte of the response, WebSockets included. If nothing has
	// been sent the client gets 504, else its connection is cut.
	Timeout time.Duration
	// ResponseStartTimeout bounds the time to the response's header. 0 is
	// only Timeout.
	ResponseStartTimeout time.Duration
	// Protocol the instances speak; "" is HTTP1.
	Protocol Protocol
	// QueueDepth is how many requests may wait for an instance.
	QueueDepth int
	// QueueTimeout is how long a request may wait for an instance.
	QueueTimeout time.Duration
}

func (r Revision) withDefaults() Revision {
	if r.Timeout <= 0 {
		r.Timeout = DefaultTimeout
	}
	if r.Protocol == "" {
		r.Protocol = HTTP1
	}
	if r.QueueDepth <= 0 {
		r.QueueDepth = DefaultQueueDepth
	}
	if r.QueueTimeout <= 0 {
		r.QueueTimeout = DefaultQueueTimeout
	}
	if r.ContainerConcurrency < 0 {
		r.ContainerConcurrency = 0
	}
	return r
}

// Instance is one running copy of a revision.
type Instance interface {
	// ID is unique within the revision.
	ID() string
	// Dial connects to the port the function listens on.
	Dial(ctx context.Context) (net.Conn, error)
	// Start says how the instance came to be. It is asked once, when the
	// instance is added.
	Start() StartInfo
}

// StartKind is how an instance was started.
type StartKind string

// The kinds of start.
const (
	Booted   StartKind = "booted"
	Restored StartKind = "restored"
	// Adopted instances were running before the gateway was: no cold start.
	Adopted StartKind = "adopted"
)

// StartInfo says how an instance was started.
type StartInfo struct {
	Kind   StartKind
	Phases []Phase // in order
}

// Phase is one step of a start.
type Phase struct {
	Name string
	Took time.Duration
}

// Config configures a Gateway. The zero value works.
type Config struct {
	Log        *slog.Logger          // nil: slog.Default
	Registerer prometheus.Registerer // nil: metrics are kept but not registered
	// OnDemand is told that a request waits and there may be too few
	// instances. It must not block and is called for every such request.
	OnDemand func(RevisionKey)
	// OnDialError is told that an instance could not be connected to. It
	// must not block. The instance stays until RemoveInstance.
	OnDialError func(key RevisionKey, instanceID string, err error)
	// TrustForwarded keeps the X-Forwarded-* and Forwarded headers of
	// requests and adds to them: for a gateway behind another proxy. By
	// default they are replaced, because anybody can send them.
	TrustForwarded bool
	DialTimeout    time.Duration // of one dial to an instance
	// MaxRetries is how often a request is tried again after it failed
	// before anything of the response arrived; <0 is never.
	MaxRetries int
	Now        func() time.Time // nil: time.Now
}
