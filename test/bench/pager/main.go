// Command pager measures the Go pager against plain C in one run: how fast a
// working set is installed, and how long a demand fault takes, as the faulting
// process sees it. It needs root and gcc, and prints a Markdown table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 10, "measurements of each kind")
	mib := flag.Int("mib", 64, "size of the working set in MiB, a power of two")
	source := flag.String("c", "test/bench/pager/c/pagerbench.c", "the C program's source")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *source, *rounds, int64(*mib)<<20); err != nil {
		log.Fatal("pager benchmark: ", err)
	}
}

func run(ctx context.Context, source string, rounds int, size int64) (err error) {
	if rounds < 1 || size < 1<<20 || size&(size-1) != 0 || size > 4<<30 {
		return errors.New("-rounds must be positive, -mib a power of two up to 4096")
	}
	dir, err := os.MkdirTemp("", "skep-pager-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{dir: dir, program: filepath.Join(dir, "pagerbench"), size: size}
	if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-o", b.program, source).CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w\n%s", source, err, out)
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.close()

	kinds := []struct {
		name    string
		measure func(context.Context) (sample, error)
		samples []sample
	}{{name: "C bulk", measure: b.bulkC}, {name: "Go bulk", measure: b.bulkGo},
		{name: "C fault", measure: b.faultC}, {name: "Go fault", measure: b.faultGo},
		{name: "Go scattered", measure: b.scatteredGo}}
	for range rounds {
		// Taking turns, in a mixed order, so that a busy spell of the machine
		// hits all alike.
		for _, i := range rand.Perm(len(kinds)) {
			s, err := kinds[i].measure(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", kinds[i].name, err)
			}
			kinds[i].samples = append(kinds[i].samples, s)
		}
	}
	bulkC, bulkGo := median(kinds[0].samples), median(kinds[1].samples)
	faultC, faultGo := median(kinds[2].samples), median(kinds[3].samples)
	scattered := median(kinds[4].samples)
	pages := float64(size / 4096)
	fmt.Printf("Medians of %d rounds, %d MiB, pages of 4 KiB, page cache hot, checksums of the working set checked before.\n\n", rounds, size>>20)
	fmt.Println("| | C | Go pager | Go to C | aim |")
	fmt.Println("|---|---|---|---|---|")
	fmt.Printf("| working set, us a page | %.2f | %.2f | | |\n", bulkC.a/pages/1e3, bulkGo.a/pages/1e3)
	fmt.Printf("| working set, MiB/s | %.0f | %.0f | %.0f %% | >= 90 %% |\n", rate(size, bulkC.a), rate(size, bulkGo.a), 100*bulkC.a/bulkGo.a)
	fmt.Printf("| the same in mixed runs of %d pages, MiB/s | | %.0f | %.0f %% | |\n", shortRun, rate(size, scattered.a), 100*bulkC.a/scattered.a)
	fmt.Printf("| demand fault, median, us | %.1f | %.1f | %.2fx | <= 1.5x |\n", faultC.a/1e3, faultGo.a/1e3, faultGo.a/faultC.a)
	fmt.Printf("| demand fault, 99th percentile, us | %.1f | %.1f | %.2fx | |\n", faultC.b/1e3, faultGo.b/1e3, faultGo.b/faultC.b)
	return nil
}

// sample is nanoseconds: of a whole installation, or median and 99th
// percentile of a fault.
type sample struct{ a, b float64 }

func median(s []sample) sample {
	mid := func(get func(sample) float64) float64 {
		v := make([]float64, len(s))
		for i := range s {
			v[i] = get(s[i])
		}
		slices.Sort(v)
		return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
	return sample{mid(func(s sample) float64 { return s.a }), mid(func(s sample) float64 { return s.b })}
}

func rate(size int64, ns float64) float64 { return float64(size>>20) / (ns / 1e9) }
