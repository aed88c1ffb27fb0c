package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func (r *results) writeBursts(w io.Writer, plots string) error {
	if len(r.bursts) == 0 {
		return nil
	}
	fmt.Fprint(w, "## Restores at the same time\n\n")
	fmt.Fprintf(w, "n restores from nothing but network links at the same time, in the driver's own mode, hot; %d rounds. Throughput: n by the time until the last has answered.\n", r.o.rounds)
	fmt.Fprintf(w, "REAP: published mean times on %.0f processors (Ustiugov et al., ASPLOS 2021), bound by its disk of 850 MB/s.\n\n", reapMachine)
	fmt.Fprintln(w, "| | n | restores/s per processor | median | p99 | until the last | processors busy (whole machine) | of that in the kernel | processor time each (sandbox and program) |\n|---|---|---|---|---|---|---|---|---|")
	for _, b := range r.bursts {
		name := b.driver + ", " + b.fn.title
		if b.set {
			name += " with working set"
		}
		for _, x := range b.sizes {
			fmt.Fprintf(w, "| %s | %d | **%.1f** | %s | %s | %s | %.0f %% | %.0f %% | %s |\n", name, x.n, x.perCore(), ms(median(x.all)), ms(quantile(x.all, 0.99)),
				ms(median(x.last)), 100*x.used(), 100*x.kernel/x.busy, ms(x.cost()))
		}
	}
	for i, n := range reapN {
		fmt.Fprintf(w, "| REAP (plain snapshots) | %d | %.2f (%.2f) | %.0f ms (%.0f ms) | | | | | |\n", n,
			float64(n)/reapREAP[i]*1000/reapMachine, float64(n)/reapPlain[i]*1000/reapMachine, reapREAP[i], reapPlain[i])
	}
	fmt.Fprintln(w)
	name, err := plotBursts(r.bursts, plots)
	if err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	fmt.Fprintf(w, "![Restores at the same time](%s/%s)\n\n", r.o.plots, name)
	fmt.Fprint(w, "Profiles of the largest bursts are made with `PERF=DIR make bench-snapshots` (package linux-perf; a skep-runsc with symbols is used then):\n`perf record -a -g -e cpu-clock` runs beside one more burst; look with `perf report -i DIR/NAME.perf --no-children`.\nWhat they showed: [snapshots-bottlenecks.md](snapshots-bottlenecks.md).\n\n")
	for _, b := range r.bursts {
		if b.profiled != "" {
			fmt.Fprintf(w, "%s, %s, by program and by function:\n\n```\n%s\n```\n\n", b.driver, b.fn.title, b.profiled)
		}
	}
	return nil
}

func (r *results) writeDensity(w io.Writer) {
	if len(r.densities) == 0 {
		return
	}
	fmt.Fprint(w, "## Density\n\n")
	fmt.Fprintf(w, "%d restored clones that have answered one request and are idle, in the driver's own mode. What one more costs is the growth from the first half of them to all; how many fit into %d GiB is\n**extrapolated** from that, by the larger of PSS and what the cgroups are charged with (less page cache). The fall of the machine's available memory has the kernel's share too\n(page tables, sockets, namespaces), and the noise of whatever else runs.\n\n",
		r.o.clones, fits>>30)
	fmt.Fprintln(w, "| driver | function | one alone: PSS | charged | one more: PSS | charged | available memory | fit into 8 GiB |\n|---|---|---|---|---|---|---|---|")
	for _, d := range r.densities {
		pss, charged, machine := d.each()
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | **%s** |\n", d.driver, d.fn.title, size(d.one.pss), size(d.one.charged),
			size(pss), size(charged), size(machine), fit(max(pss, charged)))
	}
	fmt.Fprintln(w)
}

func fit(each int64) string {
	if each <= 0 {
		return "?"
	}
	return fmt.Sprint(int64(fits) / each)
}

func (r *results) writeCycles(w io.Writer) {
	if len(r.cycles) == 0 {
		return
	}
	fmt.Fprint(w, "## Restore and kill, again and again\n\n")
	fmt.Fprint(w, "One function, restored from nothing but a network link, one request, destroyed; one after the other. Before (after 20 to warm up) and after all cycles are counted: processes, mounts, network namespaces,\ncgroups, descriptors, files of the program, its goroutines; memory is the resident set of the program itself.\n\n")
	fmt.Fprintln(w, "| driver | cycles | first part, median (p99) | last part | drift | destroying | left behind | memory before | after | threads before, after |\n|---|---|---|---|---|---|---|---|---|---|")
	for _, c := range r.cycles {
		n := c.part()
		first, last := c.all[:min(n, len(c.all))], c.all[max(0, len(c.all)-n):]
		left := "nothing"
		if d := c.differences(); len(d) > 0 {
			left = "**" + strings.Join(d, ", ") + "**"
		}
		fmt.Fprintf(w, "| %s | %d | %s (%s) of %d | %s (%s) | %+.1f %% | %s | %s | %s | %s | %d, %d |\n", c.driver, len(c.all),
			ms(median(first)), ms(quantile(first, 0.99)), n, ms(median(last)), ms(quantile(last, 0.99)), 100*(ratio(median(last), median(first))-1),
			ms(median(c.kill)), left, size(c.before.rss), size(c.after.rss), c.before.threads, c.after.threads)
	}
	fmt.Fprintln(w)
	for _, c := range r.cycles {
		b := c.before
		fmt.Fprintf(w, "- %s had before: %d processes, %d mounts, %d network namespaces, %d cgroups, %d descriptors, %d files, %d goroutines (a running program, pools of links included).\n",
			c.driver, b.processes, b.mounts, b.namespaces, b.cgroups, b.fds, b.files, b.goroutines)
	}
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
