package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// function is the number of the function's own process.
const function = 0

// guest implements agent.Guest.
type guest struct {
	ping *agentpb.PingResponse

	mu     sync.Mutex // held through Configure and Start
	conf   *agentpb.ConfigureRequest
	random int // descriptor of /dev/random, open since Configure
	// nameFiles are open since Suspend.
	nameFiles []nameFile
	cg        *cgroup
	stage     *stage // between Configure and Start
	procs     map[uint32]*process
	nextID    uint32
	execs     int
}

var _ agent.Guest = (*guest)(nil)

func newGuest(kernel, ready time.Duration) *guest {
	return &guest{
		ping: &agentpb.PingResponse{
			Version: agent.Version, KernelMicros: uint64(kernel.Microseconds()), ReadyMicros: uint64(ready.Microseconds()),
		},
		procs:  map[uint32]*process{},
		nextID: function + 1,
	}
}

func (g *guest) Ping() *agentpb.PingResponse { return g.ping }

func (g *guest) Configure(_ context.Context, conf *agentpb.ConfigureRequest) (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conf != nil {
		return errors.New("configured already")
	}
	g.conf = conf
	if conf.Hostname != "" {
		if err := unix.Sethostname([]byte(conf.Hostname)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	if g.random, err = unix.Open("/dev/random", unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/random: %w", err)
	}
	if err := setLimits(); err != nil {
		return err
	}
	if g.cg, err = makeCgroup(conf.MemoryBytes); err != nil {
		return err
	}
	var files childFiles
	defer files.closeChildEnds()
	p := &process{ended: make(chan struct{})}
	stdout, err := files.output(&p.out)
	if err != nil {
		return err
	}
	stderr, err := files.output(&p.err)
	if err != nil {
		return err
	}
	if g.stage, err = startStage(g.cg, conf, stdout, stderr); err != nil {
		return err
	}
	p.proc = g.stage.cmd.Process
	g.procs[function] = p
	go p.watch(g.cg, 0)
	return nil
}

const maxOpenFiles = 65536 // as the other drivers

// setLimits sets resource limits and settings that the function inherits.
func setLimits() error {
	inf := uint64(unix.RLIM_INFINITY)
	for what, l := range map[int]unix.Rlimit{
		unix.RLIMIT_NOFILE: {Cur: maxOpenFiles, Max: maxOpenFiles},
		unix.RLIMIT_NPROC:  {Cur: inf, Max: inf}, // the cgroup limits processes
		unix.RLIMIT_CORE:   {},
	} {
		if err := unix.Setrlimit(what, &l); err != nil {
			return fmt.Errorf("set resource limit %d: %w", what, err)
		}
	}
	// As in containers: the network is the function's own.
	return os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
}

func (g *guest) Start(_ context.Context, p *agentpb.Process) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stage == nil {
		return errors.New("not configured, or started already")
	}
	s := g.stage
	g.stage = nil
	if err := s.become(p); err != nil {
		return err
	}
	main := g.procs[function]
	go func() {
		if err := g.cg.watchStalls(main.ended); err != nil {
			_, _ = fmt.Fprintln(os.Stdout, "skep-agent:", err) // the console
		}
	}()
	if g.conf.Pids > 0 { // not before: the stage is a Go program with threads
		return g.cg.set("pids.max", strconv.FormatUint(g.conf.Pids, 10))
	}
	return nil
}

// process returns a process that may have ended already.
func (g *guest) process(id uint32) (*process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.procs[id]
	if p == nil || (id == function && g.stage != nil) {
		return nil, fmt.Errorf("there is no process %d", id)
	}
	return p, nil
}

func (g *guest) Read(ctx context.Context, id uint32, s agentpb.Stream, offset uint64) ([]byte, bool, error) {
	p, err := g.process(id)
	if err != nil {
		return nil, false, err
	}
	return p.stream(s).read(ctx, offset)
}

func (g *guest) Write(ctx context.Context, id uint32, data []byte, closeAfter bool) (int, error) {
	p, err := g.process(id)
	if err != nil {
		return 0, err
	}
	return p.write(ctx, data, closeAfter)
}

func (g *guest) Signal(id, sig uint32) error {
	p, err := g.process(id)
	if err != nil {
		return err
	}
	return p.signal(syscall.Signal(sig))
}

func (g *guest) Wait(ctx context.Context, id uint32) (*agentpb.WaitResponse, error) {
	p, err := g.process(id)
	if err != nil {
		return nil, err
	}
	return p.wait(ctx), nil
}

// Release kills and forgets a process. The function's own stays.
func (g *guest) Release(id uint32) error {
	if id == function {
		return errors.New("the function's process cannot be released")
	}
	g.mu.Lock()
	p := g.procs[id]
	delete(g.procs, id)
	if p != nil {
		g.execs--
	}
	g.mu.Unlock()
	if p == nil {
		return nil
	}
	_ = p.signal(unix.SIGKILL)
	p.closeInput()
	p.out.close()
	p.err.close()
	return nil
}
