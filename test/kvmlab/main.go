// Command kvmlab tests on a machine without KVM what needs KVM: it boots a
// virtual machine whose emulated processor has AMD's virtualization extension,
// with the distribution's kernel, and runs drivers' tests inside, where
// /dev/kvm works.
//
// The machine's programs are this machine's own: QEMU with its libraries, the
// kernel's modules, and, where they are on PATH, firecracker and jailer.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

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
	timeout time.Duration
	quiet   time.Duration
	tries   int
}

func main() {
	var o options
	flag.StringVar(&o.jobs, "jobs", "qemu,firecracker,cgroup2", "tests to run, of: qemu and firecracker (which needs the programs firecracker and jailer on PATH) with KVM; cgroup, runc and gvisor on cgroup v2, together cgroup2")
	flag.StringVar(&o.exec, "exec", "", "instead of tests, run this command in the machine")
	flag.StringVar(&o.with, "with", "", "programs and files of this machine to pack for -exec, separated by commas")
	flag.StringVar(&o.run, "run", "", "regular expression of tests, as go test's; empty is each job's own choice, . is all")
	flag.BoolVar(&o.short, "short", false, "of each job's choice, the part that CI runs")
	flag.BoolVar(&o.verbose, "v", false, "show the output of tests that pass")
	flag.IntVar(&o.memory, "memory", 4096, "the machine's memory, MiB")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "for one boot of the machine, with all its jobs")
	flag.DurationVar(&o.quiet, "quiet", time.Minute, "how long the machine may say nothing, not even that it lives, before it counts as hung")
	flag.IntVar(&o.tries, "tries", 3, "how often to boot the machine anew when it hangs")
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
	left := jobs
	var failed []string
	for try := 1; len(left) > 0; try++ {
		if err := m.pack(left); err != nil {
			return err
		}
		began := time.Now()
		results, err := m.boot(ctx, o)
		var again []lab.Job
		for _, j := range left {
			code, ended := results[j.Name]
			switch {
			case !ended:
				again = append(again, j)
			case code != 0:
				failed = append(failed, j.Name)
			}
		}
		fmt.Printf("kvmlab: machine %d ran %d of %d jobs in %s\n", try, len(left)-len(again), len(left), time.Since(began).Round(time.Second/10))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && try == o.tries:
			return fmt.Errorf("try %d of %d: %w", try, o.tries, err)
		case err != nil:
			// An emulated machine that virtualizes hangs now and then.
			fmt.Printf("kvmlab: %v; another try\n", err)
		}
		left = again
	}
	var passed []string
	for _, j := range jobs {
		if !slices.Contains(failed, j.Name) {
			passed = append(passed, j.Name)
		}
	}
	fmt.Println("kvmlab: passed:", strings.Join(passed, ", "))
	for _, l := range m.leftOut {
		fmt.Println("kvmlab:", l)
	}
	if len(failed) > 0 {
		return errors.New("failed: " + strings.Join(failed, ", "))
	}
	return nil
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
