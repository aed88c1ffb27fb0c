package gvisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// launchCommand is the name of the command that launch implements.
const launchCommand = "skep-launch"

// File descriptors that the driver gives to a launcher, beside stdin, stdout
// and stderr, which are /dev/null and a log file.
const (
	launchReports = 3 + iota // a pipe: the launcher writes one launchReport a step
	launchOrders             // a pipe: the driver writes an order for each step, or closes it
	launchStdout             // the function's stdout
	launchStderr             // the function's stderr
)

// The steps of a launcher, which are also its orders.
const (
	stepReady  = "ready"  // the process is up; not ordered
	stepCreate = "create" // make the sandbox, without the function's process
	stepStart  = "start"  // start the function's process
	stepExit   = "exit"   // the sandbox ended while the launcher lingered; not ordered
)

// launchReport is what a launcher says when it has done a step.
type launchReport struct {
	Step   string
	Error  string `json:",omitempty"`
	PID    int    `json:",omitempty"` // of the sandbox
	Socket string `json:",omitempty"` // path of the sandbox's control socket
	Status uint32 `json:",omitempty"` // wait status of the sandbox
	Took   time.Duration
}

// launch is our own runsc command. It does what "runsc create" and "runsc
// start" or "runsc restore" do, in one process that stays in between, because
// each start of this big executable costs tens of milliseconds.
//
// It is a process, not calls in the daemon, for two reasons: gVisor's library
// enters network namespaces, which could leave threads of the daemon behind in
// them (here they end with the process), and it takes the function's output
// from the process's own os.Stdout. It is gone soon after the function's start.
//
// If the daemon dies before it has ordered the start, the launcher removes the
// sandbox.
type launch struct {
	bundle     string
	restore    []string // folders of a snapshot, the newest first
	background bool
}

// Name implements subcommands.Command.
func (*launch) Name() string { return launchCommand }

// Synopsis implements subcommands.Command.
func (*launch) Synopsis() string { return "create a sandbox, then start it when told to" }

// Usage implements subcommands.Command.
func (*launch) Usage() string {
	return launchCommand + " --bundle DIR [--restore DIR... [--background]] ID\n"
}

// SetFlags implements subcommands.Command.
func (l *launch) SetFlags(f *flag.FlagSet) {
	f.StringVar(&l.bundle, "bundle", "", "directory that will hold config.json")
	f.Func("restore", "directory that holds a snapshot to start from; then those that it is a difference from", func(dir string) error {
		l.restore = append(l.restore, dir)
		return nil
	})
	f.BoolVar(&l.background, "background", false, "load the snapshot's memory behind the running function")
}

// FetchSpec implements util.SubCommand. There is no spec yet: the driver
// writes it while this process comes up.
func (*launch) FetchSpec(*config.Config, *flag.FlagSet) (string, *specs.Spec, error) {
	return "", nil, nil
}

// Execute implements subcommands.Command.
func (l *launch) Execute(ctx context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	if f.NArg() != 1 {
		return util.Errorf("usage: %s", l.Usage())
	}
	for fd := launchReports; fd <= launchStderr; fd++ {
		unix.CloseOnExec(fd) // or the sandbox would inherit it
	}
	// The sandbox hands these on to the function.
	os.Stdout = os.NewFile(launchStdout, "stdout")
	os.Stderr = os.NewFile(launchStderr, "stderr")

	p := &launching{
		conf:    args[0].(*config.Config),
		reports: json.NewEncoder(os.NewFile(launchReports, "reports")),
		orders:  bufio.NewScanner(os.NewFile(launchOrders, "orders")),
	}
	if err := p.run(ctx, f.Arg(0), l); err != nil {
		if p.container != nil && !p.started {
			_ = p.container.Destroy() // the driver looks after what is left
		}
		return subcommands.ExitFailure
	}
	return subcommands.ExitSuccess
}

// launching is a launcher at work.
type launching struct {
	conf      *config.Config
	reports   *json.Encoder
	orders    *bufio.Scanner
	container *container.Container
	pages     *pageServer // if it is restored
	snapshot  *os.File    // the sandbox's end of the connection to pages
	started   bool
}

func (p *launching) run(ctx context.Context, id string, l *launch) error {
	if err := p.reports.Encode(launchReport{Step: stepReady}); err != nil {
		return err
	}
	err := p.obey(stepCreate, func(r *launchReport) error {
		spec, err := specutils.ReadSpec(l.bundle, p.conf)
		if err != nil {
			return fmt.Errorf("read %s/config.json: %w", l.bundle, err)
		}
		p.container, err = container.New(p.conf, container.Args{ID: id, Spec: spec, BundleDir: l.bundle})
		if err != nil {
			return err
		}
		r.PID = p.container.SandboxPid()
		r.Socket = p.container.Sandbox.ControlSocketPath
		if len(l.restore) > 0 {
			return p.prepareRestore(ctx, l)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = p.obey(stepStart, func(*launchReport) error {
		if len(l.restore) > 0 {
			return p.startRestored(ctx, l)
		}
		return p.container.Start(p.conf)
	})
	if err != nil {
		return err
	}
	p.started = true
	return p.linger()
}

// linger waits until the driver releases the launcher, or the sandbox ends.
// That is told: a sandbox whose function ends at once may be gone before the
// driver can ask it.
func (p *launching) linger() error {
	ended := make(chan launchReport, 1)
	go func() {
		var ws unix.WaitStatus
		for {
			_, err := unix.Wait4(p.container.SandboxPid(), &ws, 0, nil)
			if err == nil {
				ended <- launchReport{Step: stepExit, Status: uint32(ws)}
			}
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	released := make(chan struct{})
	go func() {
		p.orders.Scan()
		if p.pages != nil { // the function may run before its memory is complete
			p.pages.wait()
		}
		close(released)
	}()
	select {
	case r := <-ended:
		return p.reports.Encode(r)
	case <-released:
		return nil
	}
}

// obey waits for the order to do a step, does it, and reports.
func (p *launching) obey(order string, do func(*launchReport) error) error {
	if !p.orders.Scan() || p.orders.Text() != order {
		return errors.New("not ordered: the driver gave up")
	}
	begin := time.Now()
	r := launchReport{Step: order}
	err := do(&r)
	r.Took = time.Since(begin)
	if err != nil {
		r.Error = err.Error()
	}
	return errors.Join(err, p.reports.Encode(r))
}

var _ util.SubCommand = (*launch)(nil)
