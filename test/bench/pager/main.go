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
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 40, "measurements of each kind")
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

	bulk := kind{name: "working set", c: b.bulkC, pager: b.bulkGo}
	fresh := kind{name: "working set opened anew", c: b.bulkC, pager: b.freshGo}
	scattered := kind{name: "scattered working set", c: b.bulkC, pager: b.scatteredGo}
	fault := kind{name: "demand fault", c: b.faultC, pager: b.faultGo}
	kinds := []*kind{&bulk, &fresh, &scattered, &fault}
	for round := range rounds {
		// Taking turns, in a mixed order, so that a busy spell of the machine
		// hits all alike.
		for _, i := range rand.Perm(len(kinds)) {
			if err := kinds[i].measure(ctx, round%2 == 0); err != nil {
				return fmt.Errorf("%s: %w", kinds[i].name, err)
			}
		}
	}
	report(rounds, size, &bulk, &fresh, &scattered, &fault)
	return nil
}

// kind is a measurement of the C program and of the pager, pair by pair: one
// next to the other, each first every other time.
type kind struct {
	name     string
	c, pager func(context.Context) (sample, error)
	pairs    []pair
}

func (k *kind) measure(ctx context.Context, cFirst bool) (err error) {
	var p pair
	if cFirst {
		if p.c, err = k.c(ctx); err != nil {
			return err
		}
	}
	if p.pager, err = k.pager(ctx); err != nil {
		return err
	}
	if !cFirst {
		if p.c, err = k.c(ctx); err != nil {
			return err
		}
	}
	k.pairs = append(k.pairs, p)
	return nil
}

// The aims of issue "Snapshots".
const (
	bulkAim  = 0.9 // of the rate of C, at least
	faultAim = 1.5 // of the time of C, at most
)

func report(rounds int, size int64, bulk, fresh, scattered, fault *kind) {
	first := func(s sample) float64 { return s.a }
	second := func(s sample) float64 { return s.b }
	pages := float64(size / 4096)
	fmt.Printf("Medians of %d rounds, %d MiB, pages of 4 KiB, page cache hot, checksums of the working set checked before but where it says otherwise. "+
		"C and the pager are measured next to each other, each first every other time; "+
		"in brackets the 95 %% interval of the ratio (bootstrap over the pairs).\n\n", rounds, size>>20)
	fmt.Println("| | C | Go pager | Go to C | aim | met |")
	fmt.Println("|---|---|---|---|---|---|")
	rates := func(name string, k *kind, aim, met string) {
		c, g, r := k.summary(first, true)
		fmt.Printf("| %s, MiB/s | %.0f | %.0f | %.0f %% (%.0f to %.0f) | %s | %s |\n", name, rate(size, c), rate(size, g), 100*r.value, 100*r.low, 100*r.high, aim, met)
	}
	times := func(name string, get func(sample) float64, aim, met string) {
		c, g, r := fault.summary(get, false)
		fmt.Printf("| %s, us | %.1f | %.1f | %.2fx (%.2f to %.2f) | %s | %s |\n", name, c/1e3, g/1e3, r.value, r.low, r.high, aim, met)
	}
	c, g, r := bulk.summary(first, true)
	fmt.Printf("| working set, us a page | %.2f | %.2f | | | |\n", c/pages/1e3, g/pages/1e3)
	rates("working set", bulk, fmt.Sprintf(">= %.0f %%", 100*bulkAim), yes(r.value >= bulkAim))
	_, _, r = fresh.summary(first, true) // what drivers do, for each machine
	rates("opened anew, checksums checked meanwhile", fresh, fmt.Sprintf(">= %.0f %%", 100*bulkAim), yes(r.value >= bulkAim))
	rates(fmt.Sprintf("in mixed runs of %d pages", shortRun), scattered, "", "")
	_, _, r = fault.summary(first, false)
	times("demand fault, median", first, fmt.Sprintf("<= %.1fx", faultAim), yes(r.value <= faultAim))
	times("demand fault, 99th percentile", second, "", "")
}

func yes(met bool) string {
	if met {
		return "yes"
	}
	return "**no**"
}

// sample is nanoseconds: of a whole installation, or median and 99th
// percentile of a fault.
type sample struct{ a, b float64 }

func rate(size int64, ns float64) float64 { return float64(size>>20) / (ns / 1e9) }
