// Package fleet keeps each revision at the number of instances it should
// have: it asks the autoscaler, starts instances on the node, hands them to
// the gateway, and drains and stops them.
package fleet

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/autoscale"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Launcher starts instances.
type Launcher interface {
	// Launch returns an instance that is ready.
	Launch(ctx context.Context, l node.Launch) (Instance, error)
}

// Instance is one that a Launcher started.
type Instance interface {
	ID() string
	// Dial connects to the function.
	Dial(ctx context.Context) (net.Conn, error)
	// Phases says how long each step of the start took, in order.
	Phases() []sandbox.Phase
	// ReadyAt is when the instance became ready.
	ReadyAt() time.Time
	// Done is closed when the instance has ended and given all back.
	Done() <-chan struct{}
	// ExitError says why it ended. It is valid after Done.
	ExitError() error
	// Stop ends the instance, at the latest after the grace, and waits for
	// that until ctx ends.
	Stop(ctx context.Context, grace time.Duration) error
}

// Snapshotter is implemented by instances of which snapshots are made.
type Snapshotter interface {
	// NextSave is after how many responses in all to call SaveNow, in a moment
	// without requests; 0 means not at all.
	NextSave(responses uint64) uint64
	// SaveNow makes a snapshot if the instance's policy wants one now, or finds
	// that there is one. There must be no connection to the instance. It goes on,
	// also on error, unless that is node.ErrEndedBySnapshot: then it is Done in a
	// moment. snapshots.ErrNotNow asks for another try.
	SaveNow(ctx context.Context, m snapshots.Moment, responses uint64) (saved bool, err error)
	// SaveAfter is before when it is too early to try again after a failure.
	SaveAfter() time.Time
	// Answered is told how long the first response took.
	Answered(took time.Duration)
	// EndRecording is called when the first response is out.
	EndRecording(ctx context.Context) error
	// Kind is how the instance was started.
	Kind() node.StartKind
}

// Keeper is implemented by Launchers that keep instances prepared.
type Keeper interface {
	// Keep is told of a revision that may be launched soon, and of changes.
	Keep(l node.Launch)
	// Unkeep is told that it will not be launched again.
	Unkeep(namespace, revision string)
}

// Traffic is what a fleet tells and asks the gateway.
type Traffic interface {
	// Served waits until an instance has given that many responses.
	Served(ctx context.Context, key gateway.RevisionKey, id string, responses uint64) error
	// FirstResponse is how long an instance took for its first response; 0 if
	// there was none.
	FirstResponse(key gateway.RevisionKey, id string) time.Duration
	// Pause waits for that and for a moment without requests, and takes the
	// instance out of rotation until resume.
	Pause(ctx context.Context, key gateway.RevisionKey, id string, responses uint64) (resume func(), err error)
	// Responses is how many responses an instance has given.
	Responses(key gateway.RevisionKey, id string) uint64
	AddInstance(key gateway.RevisionKey, i gateway.Instance) bool
	RemoveInstance(key gateway.RevisionKey, id string) (drained <-chan struct{})
	FailWaiting(key gateway.RevisionKey, err error)
	Stats(key gateway.RevisionKey) (gateway.Stats, bool)
}

// Spec is the desired state of a revision.
type Spec struct {
	Key    gateway.RevisionKey
	Launch node.Launch
	Policy autoscale.Policy
	// Grace is how long an instance may take to end after its last request.
	Grace time.Duration
}

// Event is something that happened to a revision and that its owner should see.
type Event struct {
	Key    gateway.RevisionKey
	Reason string // a word, as in Kubernetes events
	Err    error
}

// Config says what a fleet works with.
type Config struct {
	Node    Launcher
	Traffic Traffic
	Log     *slog.Logger
	// OnEvent is called for failures of instances. It must not block.
	OnEvent func(Event)
	// OnScale is called when the number of ready instances has changed. It
	// must not block.
	OnScale func(key gateway.RevisionKey, ready int)
	// Starts bounds how many instances start at the same time on this node;
	// 0 means twice the CPUs, at least 4: starting is CPU-bound. One that is
	// not ready after some seconds waits rather than works: it no longer
	// counts, so that functions that never get ready do not block the others.
	Starts int
}

// Fleet keeps any number of revisions. It is safe for concurrent use.
type Fleet struct {
	cfg    Config
	starts chan struct{} // a semaphore
	slot   time.Duration // how long a start is taken for work
	after  func(time.Duration) <-chan time.Time
	ctx    context.Context
	cancel context.CancelFunc

	mu        sync.Mutex
	revisions map[gateway.RevisionKey]*revision
	closed    bool

	leaving sync.WaitGroup // revisions that were removed and still drain
}

// New returns an empty fleet.
func New(cfg Config) *Fleet {
	if cfg.Starts <= 0 {
		cfg.Starts = max(4, 2*runtime.NumCPU())
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(Event) {}
	}
	if cfg.OnScale == nil {
		cfg.OnScale = func(gateway.RevisionKey, int) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Fleet{cfg: cfg, starts: make(chan struct{}, cfg.Starts), slot: startSlot, after: time.After, ctx: ctx, cancel: cancel,
		revisions: map[gateway.RevisionKey]*revision{}}
}

// Set adds a revision or changes what an existing one should be. Instances
// that run keep what they were started with.
func (f *Fleet) Set(s Spec) {
	if r := f.getOrAdd(s); r != nil {
		r.setSpec(s) // without f.mu, which Poke takes
	}
}

func (f *Fleet) getOrAdd(s Spec) *revision {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	r := f.revisions[s.Key]
	if r == nil {
		r = newRevision(f, s)
		f.revisions[s.Key] = r
		go r.run()
	}
	return r
}

// Poke makes the fleet look at a revision now, because a request waits.
func (f *Fleet) Poke(key gateway.RevisionKey) {
	if r := f.get(key); r != nil {
		r.poke()
	}
}

// Ready is the number of instances that take requests now.
func (f *Fleet) Ready(key gateway.RevisionKey) int {
	if r := f.get(key); r != nil {
		return r.readyCount()
	}
	return 0
}

// Ensure waits until the revision has an instance, starting one if there is
// none. The error is that of the start, most often a *node.StartError.
func (f *Fleet) Ensure(ctx context.Context, key gateway.RevisionKey) error {
	r := f.get(key)
	if r == nil {
		return errUnknown(key)
	}
	return r.ensure(ctx)
}

// Remove forgets a revision: from now on its instances get no new requests,
// and its name is free for another. The instances are drained and stopped;
// the channel is closed when they are gone.
func (f *Fleet) Remove(key gateway.RevisionKey) (gone <-chan struct{}) {
	f.mu.Lock()
	r := f.revisions[key]
	delete(f.revisions, key)
	if r == nil {
		f.mu.Unlock()
		none := make(chan struct{})
		close(none)
		return none
	}
	f.leaving.Add(1) // under the lock: not after Close waits
	f.mu.Unlock()
	r.detach()
	go func() {
		defer f.leaving.Done()
		<-r.gone
	}()
	return r.gone
}

// Close removes every revision, and waits until those and the ones that were
// removed before are gone, or ctx ends.
func (f *Fleet) Close(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	all := f.revisions
	f.revisions = map[gateway.RevisionKey]*revision{}
	f.mu.Unlock()
	for _, r := range all {
		r.detach()
	}
	gone := make(chan struct{})
	go func() {
		for _, r := range all {
			<-r.gone
		}
		f.leaving.Wait()
		close(gone)
	}()
	defer f.cancel()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("instances still drain"), context.Cause(ctx))
	}
}

func (f *Fleet) get(key gateway.RevisionKey) *revision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revisions[key]
}
