// Command kvmlab tests on a machine without KVM what needs KVM: it boots a
// virtual machine whose emulated processor has AMD's virtualization extension,
// with the distribution's kernel, and runs drivers' tests inside, where
// /dev/kvm works.
//
// The machine's programs are this machine's own: QEMU with its libraries, the
// kernel's modules, and, where skep setup or PATH has them, firecracker
// and jailer.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/test/kvmlab/lab"
)

type options struct {
	jobs    string
	run     string
	exec    string
	with    string
	short   bool
	verbose bool
	memory  int
	atOnce  int
	timeout time.Duration
	quiet   time.Duration
	tries   int
}

func main() {
	var o options
	flag.StringVar(&o.jobs, "jobs", "qemu,firecracker,cgroup2", "tests to run, of: qemu and firecracker (which needs the programs firecracker and jailer: skep setup) with KVM; cgroup, runc and gvisor on cgroup v2, together cgroup2")
	flag.StringVar(&o.exec, "exec", "", "instead of tests, run this command in the machine")
	flag.StringVar(&o.with, "with", "", "programs and files of this machine to pack for -exec, separated by commas")
	flag.StringVar(&o.run, "run", "", "regular expression of tests, as go test's; empty is each job's own choice, . is all")
	flag.BoolVar(&o.short, "short", false, "of each job, the tests that CI runs, in parts with a machine each")
	flag.BoolVar(&o.verbose, "v", false, "show the output of tests that pass")
	flag.IntVar(&o.memory, "memory", 4096, "a machine's memory, MiB")
	flag.IntVar(&o.atOnce, "parallel", min(runtime.NumCPU(), 2), "how many machines run at the same time, each with one job and one processor")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "for the job of a machine, which has a minute more")
	flag.DurationVar(&o.quiet, "quiet", time.Minute, "how much time of the processor a machine may use while it says nothing, not even that it lives, before it counts as hung; or five times as long without")
	flag.IntVar(&o.tries, "tries", 5, "how often to boot a machine anew when it hangs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kvmlab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "kvmlab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	began := time.Now()
	m, jobs, err := prepare(ctx, o, dir)
	if err != nil {
		return err
	}
	fmt.Printf("kvmlab: prepared in %s\n", time.Since(began).Round(time.Second/10))
	for _, l := range m.leftOut {
		fmt.Println("kvmlab:", l)
	}
	if err := m.pack(jobs); err != nil {
		return err
	}
	failures := make([]error, len(jobs))
	var g errgroup.Group
	g.SetLimit(max(o.atOnce, 1))
	for i, j := range jobs {
		g.Go(func() error {
			failures[i] = m.run(ctx, o, j)
			return nil
		})
	}
	_ = g.Wait() // nothing but nil
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var passed, failed []string
	for i, j := range jobs {
		if failures[i] == nil {
			passed = append(passed, j.Name)
		} else {
			failed = append(failed, fmt.Sprintf("%s (%v)", j.Name, failures[i]))
		}
	}
	fmt.Println("kvmlab: passed:", strings.Join(passed, ", "))
	if o.short && o.run == "" {
		fmt.Println("kvmlab: of each only the part that is for CI (-short): the tests above")
	}
	for _, l := range m.leftOut {
		fmt.Println("kvmlab:", l)
	}
	if len(failed) > 0 {
		return errors.New("failed: " + strings.Join(failed, ", "))
	}
	return nil
}

// run boots machines until one has run the job to its end.
func (m *machine) run(ctx context.Context, o options, j lab.Job) error {
	for try := 1; ; try++ {
		began := time.Now()
		r, err := m.boot(ctx, o, j)
		took := fmt.Sprintf("%s, CPU time %s", time.Since(began).Round(time.Second/10), r.cpu.Round(time.Second/10))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && r.code == 0:
			fmt.Printf("kvmlab: %s: passed in %s: %s\n", j.Name, took, r.note)
			return nil
		case err == nil:
			fmt.Printf("kvmlab: %s: failed in %s: %s\n", j.Name, took, r.note)
			return fmt.Errorf("exit %d", r.code)
		case try >= o.tries:
			return fmt.Errorf("try %d of %d: %w", try, o.tries, err)
		}
		// An emulated machine that virtualizes hangs now and then.
		fmt.Printf("kvmlab: %s: %v after %s; another try\n", j.Name, err, took)
	}
}

// repository is the module's folder.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("run it in Skep's repository: it builds tests from the source")
		}
	}
}
