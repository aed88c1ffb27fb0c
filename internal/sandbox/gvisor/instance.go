package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gvboot "gvisor.dev/gvisor/runsc/boot"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// instance is one sandbox. Its life: create, Start, the watch sees the
// function end, Destroy; where the last may come at any time.
type instance struct {
	runsc  string // the program
	spec   sandbox.Spec
	group  *cgroup.Group
	socket string // path of the control socket

	restore *sandbox.Restore // from which it starts; nil: it starts the function
	base    *index           // of what it is restored from
	saving  chan struct{}    // full while a snapshot is made, or a disk mounted

	mu       sync.Mutex // of what follows; Start holds it throughout
	launcher *launcher
	started  bool // Start was called
	watched  bool // the watch runs: it will finish
	mounts   []mounted
	phases   []sandbox.Phase

	stalled atomic.Bool // it was killed for that

	finish func(sandbox.Exit) // the first call counts; ends life
	life   context.Context    // ends once exit is set
	exit   sandbox.Exit
}

func newInstance(runsc string, spec *sandbox.Spec) *instance {
	s := &instance{runsc: runsc, spec: *spec, saving: make(chan struct{}, 1)}
	var once sync.Once
	var end context.CancelFunc
	s.life, end = context.WithCancel(context.Background())
	s.finish = func(e sandbox.Exit) {
		once.Do(func() {
			s.exit = e
			end()
		})
	}
	return s
}

// ID implements sandbox.Sandbox.
func (s *instance) ID() string { return s.spec.ID }

// create makes everything but the function's process. On error the caller
// destroys what there is.
func (s *instance) create(ctx context.Context) (err error) {
	begin := time.Now()
	var args []string
	if s.restore != nil {
		for _, dir := range s.restore.Image.Dirs {
			args = append(args, "--restore="+dir)
		}
		if s.restore.Mode == sandbox.RestoreBackground {
			args = append(args, "--background")
		}
	}
	s.launcher, err = startLauncher(s.runsc, &s.spec, args)
	if err != nil {
		return err
	}
	// While that process comes up:
	s.group, err = cgroup.Create(s.spec.Cgroup, limits(ocispec.Defaults(s.spec.Resources)))
	if err != nil {
		return err
	}
	if err := s.writeBundle(); err != nil {
		return err
	}
	begin = s.phase("prepare", begin)
	if _, err := s.launcher.await(ctx, stepReady); err != nil {
		return err
	}
	// What it makes from here on is in the group.
	if err := s.group.Add(s.launcher.cmd.Process.Pid); err != nil {
		return err
	}
	begin = s.phase("launcher", begin)
	r, err := s.launcher.order(ctx, stepCreate)
	if err != nil {
		return err
	}
	s.socket = r.Socket
	s.phase("boot", begin)
	return nil
}

func (s *instance) writeBundle() error {
	image, closer, err := ocispec.OpenImage(s.spec.Rootfs)
	if err != nil {
		return err
	}
	defer closer.Close()
	spec, err := newSpec(&s.spec, image, s.restore, s.mounts)
	if err != nil {
		return err
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode the runtime spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.spec.Dir, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("write the runtime spec: %w", err)
	}
	return nil
}

// phase records a phase that began at begin and ends now, and returns now.
func (s *instance) phase(name string, begin time.Time) time.Time {
	now := time.Now()
	s.phases = append(s.phases, sandbox.Phase{Name: name, Took: now.Sub(begin)})
	return now
}

// Start implements sandbox.Sandbox.
func (s *instance) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return fmt.Errorf("start gVisor sandbox %s: started before, or destroyed", s.spec.ID)
	}
	s.started = true
	begin := time.Now()
	if _, err := s.launcher.order(ctx, stepStart); err != nil {
		return fmt.Errorf("start gVisor sandbox %s: %w", s.spec.ID, err)
	}
	name := "start"
	if s.restore != nil {
		name = "restore"
	}
	s.phase(name, begin)
	s.watched = true
	go s.watch(s.launcher)
	go s.killStalled()
	return nil
}

// Signal implements sandbox.Sandbox.
func (s *instance) Signal(ctx context.Context, sig os.Signal) error {
	if err := s.running(); err != nil {
		return fmt.Errorf("signal gVisor sandbox %s: %w", s.spec.ID, err)
	}
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal gVisor sandbox %s: %v is not a signal of this system", s.spec.ID, sig)
	}
	if err := s.signal(ctx, n, 0); err != nil {
		return fmt.Errorf("signal gVisor sandbox %s: %w", s.spec.ID, err)
	}
	return nil
}

// signal signals a process in the sandbox; 0 is the function's.
func (s *instance) signal(ctx context.Context, sig syscall.Signal, pid int32) error {
	arg := &gvboot.SignalArgs{CID: s.spec.ID, Signo: int32(sig), PID: pid}
	return notRunning(call(ctx, s.socket, gvboot.ContMgrSignal, arg, nil))
}

// running returns an error unless the function's process runs.
func (s *instance) running() error {
	s.mu.Lock()
	watched := s.watched
	s.mu.Unlock()
	if !watched || s.life.Err() != nil {
		return sandbox.ErrNotRunning
	}
	return nil
}

// notRunning adds the contract's name for it where a call found nobody.
func notRunning(err error) error {
	if errors.Is(err, errGone) {
		return fmt.Errorf("%w: %w", sandbox.ErrNotRunning, err)
	}
	return err
}

// Phases implements sandbox.Sandbox.
func (s *instance) Phases() []sandbox.Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.phases)
}

// Stats implements sandbox.Sandbox.
func (s *instance) Stats(context.Context) (sandbox.Stats, error) {
	st, err := s.group.Stats()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) { // destroyed
			err = fmt.Errorf("%w: %w", sandbox.ErrNotRunning, err)
		}
		return sandbox.Stats{}, fmt.Errorf("measure gVisor sandbox %s: %w", s.spec.ID, err)
	}
	return sandbox.Stats{MemoryBytes: st.MemoryBytes, CPUTime: st.CPUTime}, nil
}
