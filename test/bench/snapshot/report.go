package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// write writes the report and its plots.
func (r *results) write() error {
	plots := filepath.Join(filepath.Dir(r.o.out), r.o.plots)
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	r.head(&b)
	r.writeAims(&b)
	if err := r.writeStarts(&b, plots); err != nil {
		return err
	}
	if err := r.writeSizes(&b, plots); err != nil {
		return err
	}
	r.writeFar(&b)
	if r.pagerTable != "" {
		fmt.Fprintf(&b, "## The pager against plain C\n\n`test/bench/pager`, both programs' sources are there. %s\n\n", r.pagerTable)
	}
	if err := r.writeBursts(&b, plots); err != nil {
		return err
	}
	r.writeDensity(&b)
	r.writeCycles(&b)
	progress("writing %s", r.o.out)
	return os.WriteFile(r.o.out, append(bytes.TrimSpace(b.Bytes()), '\n'), 0o644) //nolint:gosec // a public document
}

func (r *results) head(w io.Writer) {
	memory, _ := procKB("/proc/meminfo", "MemTotal")
	fmt.Fprint(w, "# Benchmarks of snapshots\n\n")
	fmt.Fprintf(w, "Regenerate with `make bench-snapshots` (root, Debian 12); `RUNS=3 make bench-snapshots` is a quick check of the program itself.\nThis run: %s, %d runs of each kind, took %s.\n\n",
		r.began.UTC().Format("2006-01-02 15:04"), r.o.runs, r.took.Round(time.Second))
	fmt.Fprintf(w, "Machine: %d processors (%s), %.0f GiB memory, Linux %s, %s. Load average at the begin %s, at the end %s (an idle machine begins near 0).\n",
		runtime.NumCPU(), cpuModel(), float64(memory)/(1<<30), kernelRelease(), runtime.Version(), r.load[0], r.load[1])
	fmt.Fprintf(w, "Disk (%s): with a cold page cache 4 KiB anywhere take %.0f us, one after the other it reads %.0f MB/s.\n", r.disk.fs, float64(r.disk.page)/1e3, r.disk.rate/1e6)
	for _, d := range r.drivers {
		c := d.Capabilities()
		how := "emulated processors (TCG)"
		switch {
		case c.HardwareVirtualization:
			how = "KVM"
		case d.Name() == "gvisor":
			how = "systrap"
		}
		fmt.Fprintf(w, "%s: %s.\n", d.Name(), how)
	}
	fmt.Fprint(w, `
Trust the ratios, which are of one run, more than the absolute times.

- The program (test/bench/snapshot) drives the sandbox drivers themselves, without daemon and gateway. Network links are made ahead.
- "Boot" is Create and Start until the port is open, then a request. "Restore" is Prepare and Start of a snapshot, then a request; the function had
  answered one request before the snapshot was made. A time ends with the first byte of the response.
- "Prepared": Create or Prepare was done ahead, as for a pool of prepared sandboxes. "From nothing": it counts too. Ratios to boot have the whole boot above.
  A mode that loads memory in Prepare (gvisor's eager does) shows little of it when prepared, also when cold.
- "Pool": prepared as the node does it for its pool, where the driver can do more ahead than load the snapshot: the machine has gone on, knows who it is, and stands still
  (Restore.Ahead). Only what is left then is timed. gvisor's mode for pools is eager.
- Two numbers with "to" between: the 95 % confidence interval of the ratio of the medians (bootstrap).
- "Hot": the snapshot's files are in the page cache. "Cold": fsync and posix_fadvise(DONTNEED) before Prepare on exactly these files, checked with mincore.
- All kinds of starts of one function take turns in a mixed order.
- PSS: proportional set size of all of a sandbox's processes after the response, when it is the only one. Charged: what its cgroup is charged with, less page cache; most of
  gVisor's memory is not mapped by its processes all the time, so that PSS lacks it.

`)
	if len(r.failed) > 0 {
		fmt.Fprint(w, "Not measured, because it failed:\n\n")
		for _, err := range r.failed {
			fmt.Fprintf(w, "- %.300s\n", strings.ReplaceAll(err.Error(), "\n", " "))
		}
		fmt.Fprintln(w)
	}
}

func (r *results) writeAims(w io.Writer) {
	if len(r.subjects)+len(r.far) == 0 {
		return
	}
	fmt.Fprint(w, "## Aims\n\n| | aim | measured | met |\n|---|---|---|---|\n")
	for _, a := range r.aims() {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", a.what, a.goal, a.measured, a.met)
	}
	fmt.Fprintln(w)
}

func (r *results) writeStarts(w io.Writer, plots string) error {
	for _, d := range r.drivers {
		var of []*subject
		for _, s := range r.subjects {
			if s.driver == d {
				of = append(of, s)
			}
		}
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(w, "## Time to first response: %s\n\n", d.Name())
		fmt.Fprintf(w, "Medians of %d, milliseconds. Modes of this driver, its own choice first: %s.", r.o.runs, modes(d))
		if lacks := of[0].lacks; len(lacks) > 0 {
			fmt.Fprintf(w, " It has no %s.", strings.Join(lacks, " and no "))
		}
		fmt.Fprint(w, "\n\n| function | start | hot, prepared | hot, from nothing | least, p90 | boot is so many times slower (prepared / from nothing) | cold, prepared | cold, from nothing | least, p90 | PSS, MiB | charged, MiB |\n")
		fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|")
		for _, s := range of {
			s.rows(w, s.find(wayBoot))
		}
		fmt.Fprint(w, "\nBy phase, hot (what the driver reports, then connecting and the first byte; phases below 0.5 ms are left out):\n\n")
		fmt.Fprintln(w, "| function | start | phases |\n|---|---|---|")
		for _, s := range of {
			for _, x := range s.ways {
				if len(x.hot) > 0 {
					fmt.Fprintf(w, "| %s | %s | %s |\n", s.fn.title, x.name, phases(x.hot))
				}
			}
		}
		fmt.Fprint(w, "\nThe snapshots:\n\n| function | saved in | on disk | working set: pages, of zeros | its file | diff saved in | diff on disk |\n|---|---|---|---|---|---|---|\n")
		for _, s := range of {
			if s.facts.save > 0 {
				s.snapshotRow(w)
			}
		}
		fmt.Fprintln(w)
		for _, s := range of {
			if !slices.ContainsFunc(s.ways, func(x *way) bool { return len(x.hot) > 0 }) {
				continue
			}
			name, err := plotStarts(s, plots)
			if err != nil {
				return fmt.Errorf("plot: %w", err)
			}
			fmt.Fprintf(w, "![%s](%s/%s)\n\n", title(s), r.o.plots, name)
		}
	}
	return nil
}

func modes(d sandbox.Driver) string {
	var names []string
	for _, m := range d.Capabilities().RestoreModes {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

func (s *subject) rows(w io.Writer, boot *way) {
	for _, x := range s.ways {
		if len(x.hot)+len(x.cold) == 0 {
			continue
		}
		cells := []string{s.fn.title, x.name, cell(requests(x.hot)), "**" + cell(totals(x.hot)) + "**", spread(x.hot), ""}
		if x.pooled() {
			cells[3], cells[4] = "", spreadOf(pick(x.hot, (*timing).request))
		}
		switch {
		case boot == nil || x == boot || len(x.hot) == 0:
		case x.pooled():
			cells[5] = fmt.Sprintf("%.1f", ratio(totals(boot.hot), requests(x.hot)))
		default:
			cells[5] = fmt.Sprintf("%.1f / %.1f", ratio(totals(boot.hot), requests(x.hot)), ratio(totals(boot.hot), totals(x.hot)))
		}
		switch {
		case len(x.cold) == 0:
			cells = append(cells, "", "", "")
		case x.pooled():
			cells = append(cells, cell(requests(x.cold)), "", spreadOf(pick(x.cold, (*timing).request)))
		default:
			cold := cell(totals(x.cold))
			if x.resident > 0.001 {
				cold += fmt.Sprintf(" (%.1f %% would not leave memory)", 100*x.resident)
			}
			cells = append(cells, cell(requests(x.cold)), cold, spread(x.cold))
		}
		ts := x.hot
		if len(ts) == 0 {
			ts = x.cold
		}
		cells = append(cells, fmt.Sprintf("%.0f", float64(weight(ts, func(m *memory) int64 { return m.pss }))/mib),
			fmt.Sprintf("%.0f", float64(weight(ts, func(m *memory) int64 { return m.charged }))/mib))
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

func cell(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return strings.TrimSuffix(ms(d), " ms")
}

// spread is the shortest of all and the 90th percentile, from nothing.
func spread(ts []timing) string { return spreadOf(pick(ts, (*timing).total)) }

func spreadOf(all []time.Duration) string {
	return cell(quantile(all, 0)) + ", " + cell(quantile(all, 0.9))
}

func phases(ts []timing) string {
	parts := []string{}
	add := func(name string, d time.Duration) {
		if d >= 500*time.Microsecond {
			parts = append(parts, fmt.Sprintf("%s %s", name, cell(d)))
		}
	}
	for _, p := range phasesOf(ts) {
		add(p.Name, p.Took)
	}
	add("port", median(pick(ts, func(t *timing) time.Duration { return t.Ready })))
	add("dial", median(pick(ts, func(t *timing) time.Duration { return t.Dial })))
	add("first byte", median(pick(ts, func(t *timing) time.Duration { return t.Byte })))
	return strings.Join(parts, ", ")
}

func (s *subject) snapshotRow(w io.Writer) {
	f := s.facts
	cells := []string{s.fn.title, ms(f.save), size(f.bytes), "", "", "", ""}
	if f.set.bytes > 0 {
		cells[3], cells[4] = fmt.Sprintf("%d, %d", f.set.pages, f.set.zero), size(f.set.bytes)
	}
	if f.diffBytes > 0 {
		cells[5], cells[6] = ms(f.saveDiff), size(f.diffBytes)
	}
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/mib) }

func (r *results) writeFar(w io.Writer) {
	if len(r.far) == 0 {
		return
	}
	fmt.Fprintf(w, "## Snapshots in an object store %s away\n\n", remoteDelay)
	fmt.Fprintf(w, "The snapshot's folder (the working set too) is behind a FUSE file system where each read waits %s and then gets %d MiB/s, at most %d KiB at once, any number at the same time; cold. Medians of %d, milliseconds.\n\n",
		remoteDelay, remoteRate/mib, remoteRead>>10, r.o.runs)
	fmt.Fprintln(w, "| driver | function | start | prepared | from nothing | least, p90 |\n|---|---|---|---|---|---|")
	for _, s := range r.far {
		for _, x := range s.ways {
			if len(x.cold) > 0 {
				fmt.Fprintf(w, "| %s | %s | %s | %s | **%s** | %s |\n", s.driver.Name(), s.fn.title, x.name, cell(requests(x.cold)), cell(totals(x.cold)),
					spread(x.cold))
			}
		}
	}
	fmt.Fprintln(w)
}
