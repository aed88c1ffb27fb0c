// Command snapshot measures what snapshots are worth, at the level of the
// drivers' contract, without a daemon: boots beside restores in all modes that
// a driver has, with a hot and a cold page cache, many at once, how many fit
// into memory, and whether a thousand leave anything behind. It writes
// Markdown with plots. It needs root.
//
//	make bench-snapshots             # docs/snapshots-benchmarks.md, about 40 minutes
//	RUNS=3 make bench-snapshots      # quick, to check the program itself
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/skep-dev/skep/internal/sandbox/gvisor"
)

type options struct {
	runs, cycles, most, rounds, clones  int
	drivers, functions, sections        []string
	out, plots, runsc, pagerTable, perf string
}

// Sections of the report.
const (
	secStarts     = "starts"
	secSizes      = "sizes"
	secRemote     = "remote"
	secConcurrent = "concurrent"
	secDensity    = "density"
	secCycles     = "cycles"
)

func main() {
	gvisor.MaybeRunsc()
	var o options
	flag.IntVar(&o.runs, "runs", 10, "starts of each kind; the tables show medians")
	flag.IntVar(&o.cycles, "cycles", 1000, "restores and kills of each driver")
	flag.IntVar(&o.most, "most", 64, "restores at the same time")
	flag.IntVar(&o.rounds, "rounds", 3, "bursts of each size of restores at the same time")
	flag.IntVar(&o.clones, "clones", 32, "idle clones to measure the density with")
	drivers := flag.String("drivers", "gvisor,qemu", "sandbox drivers")
	fns := flag.String("functions", "", "names of functions; default all")
	sections := flag.String("sections", strings.Join([]string{secStarts, secSizes, secRemote, secConcurrent, secDensity, secCycles}, ","), "what to measure")
	flag.StringVar(&o.out, "o", "docs/snapshots-benchmarks.md", "the report")
	flag.StringVar(&o.plots, "plots", "benchmarks", "folder of the plots, relative to the report")
	flag.StringVar(&o.runsc, "runsc", "", "a skep-runsc to use instead of the embedded one, e.g. with symbols for -perf")
	flag.StringVar(&o.pagerTable, "pager", "", "file with the table of test/bench/pager, to be included")
	flag.StringVar(&o.perf, "perf", "", "folder for CPU profiles of the largest bursts, made with perf")
	flag.Parse()
	o.drivers, o.sections = strings.Split(*drivers, ","), strings.Split(*sections, ",")
	if *fns != "" {
		o.functions = strings.Split(*fns, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "snapshot benchmark:", err)
		os.Exit(1)
	}
}

func (o *options) wants(section string) bool { return slices.Contains(o.sections, section) }

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
