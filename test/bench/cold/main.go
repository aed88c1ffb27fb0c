// Command cold measures what starting costs: from zero instances to the first
// response, by phase, for each sandbox driver and language; many starts at
// the same time; and `skep up` itself. It prints Markdown tables.
//
//	go run ./test/bench/cold -skep bin/skep [-runs 10] [-o FILE]
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/test/skeptest"
)

// progress is told what is being measured.
var progress io.Writer = os.Stderr

type options struct {
	binary  string
	runs    int
	drivers []string
	out     string
}

func main() {
	var o options
	drivers := flag.String("drivers", "gvisor,qemu,runc", "sandbox drivers to measure")
	flag.StringVar(&o.binary, "skep", "bin/skep", "the skep binary")
	flag.IntVar(&o.runs, "runs", 10, "cold starts for each row; the tables show medians")
	flag.StringVar(&o.out, "o", "", "also write the tables to this file")
	flag.Parse()
	o.drivers = strings.Split(*drivers, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	var w io.Writer = os.Stdout
	if o.out != "" {
		f, err := os.Create(o.out)
		if err != nil {
			return err
		}
		defer f.Close()
		w = io.MultiWriter(os.Stdout, f)
	}
	dir, err := os.MkdirTemp("", "skep-bench-cold-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &skeptest.Skep{Binary: o.binary, Dir: dir, Args: []string{"--idle-after", "1s", "--log-level", "warn", "--snapshots=false"}}
	if err := measureUp(ctx, w, s, o.runs); err != nil {
		return err
	}
	if err := s.Up(ctx); err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	b := &bench{skep: s, client: s.Client(), runs: o.runs}
	if err := b.deploy(ctx, o.drivers); err != nil {
		return err
	}
	if err := b.phases(ctx, w); err != nil {
		return err
	}
	return b.concurrent(ctx, w, o.drivers)
}
