package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
)

// quantile is the value below which a share q of all is, by the nearest rank.
func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	s := slices.Clone(all)
	slices.Sort(s)
	rank := int(q*float64(len(s)) + 0.999999)
	return s[min(max(rank, 1), len(s))-1]
}

// median is the middle, or the mean of the two in the middle.
func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	s := slices.Clone(all)
	slices.Sort(s)
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// interval is the 95 % confidence interval of the ratio of the medians of a and
// b: the percentile bootstrap (Efron, 1979), with the same samples each time.
func interval(a, b []time.Duration) (low, high float64) {
	const resamples = 4000
	if len(a) == 0 || len(b) == 0 {
		return 0, 0
	}
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // no secret
	draw := func(from, to []time.Duration) time.Duration {
		for i := range to {
			to[i] = from[r.IntN(len(from))]
		}
		return median(to)
	}
	x, y, all := make([]time.Duration, len(a)), make([]time.Duration, len(b)), make([]float64, resamples)
	for i := range all {
		all[i] = ratio(draw(a, x), draw(b, y))
	}
	slices.Sort(all)
	return all[resamples*25/1000], all[resamples*975/1000]
}

// weight is the median of the memory, by one of its measures.
func weight(ts []timing, get func(*memory) int64) int64 {
	return int64(median(pick(ts, func(t *timing) time.Duration { return time.Duration(get(&t.Memory)) })))
}

func pick(ts []timing, get func(*timing) time.Duration) []time.Duration {
	out := make([]time.Duration, len(ts))
	for i := range ts {
		out[i] = get(&ts[i])
	}
	return out
}

// totals and requests are medians of what a request waits for when nothing
// was prepared, and when the sandbox was.
func totals(ts []timing) time.Duration   { return median(pick(ts, (*timing).total)) }
func requests(ts []timing) time.Duration { return median(pick(ts, (*timing).request)) }

// memory is what a sandbox uses, in bytes.
type memory struct {
	// pss is the proportional set size of its processes: pages that others map
	// too count in part.
	pss int64
	// charged is what its cgroup is charged with, less page cache: also memory
	// that belongs to a process but is not mapped, as most of gVisor's is.
	charged int64
}

func (m memory) plus(n memory) memory { return memory{m.pss + n.pss, m.charged + n.charged} }

func (b *box) memory(ctx context.Context) (m memory, err error) {
	if m.pss, err = b.pss(); err != nil {
		return m, err
	}
	st, err := b.sb.Stats(ctx)
	m.charged = st.MemoryBytes
	return m, err
}

// pss is the proportional set size of all of the sandbox's processes.
func (b *box) pss() (int64, error) {
	g, err := cgroup.Load(b.spec.Cgroup)
	if err != nil {
		return 0, err
	}
	pids, err := g.Procs()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, pid := range pids {
		f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has just ended
		}
		n, err := parsePSS(f)
		_ = f.Close()
		if err == nil {
			sum += n
		}
	}
	return sum, nil
}

// parsePSS reads the Pss line of smaps_rollup, in bytes.
func parsePSS(r io.Reader) (int64, error) { return parseKB(r, "Pss") }

// parseKB reads a line "Name: N kB", in bytes.
func parseKB(r io.Reader, name string) (int64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), name+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("no line %q", name)
}

// procKB reads a line of a file in /proc, in bytes.
func procKB(path, name string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := parseKB(f, name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// cpuTime is the processor time that the whole machine has spent, in all and
// in the kernel, in seconds.
func cpuTime() (busy, kernel float64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(string(b))
}

// ownCPUTime is that of this program and of the children it has waited for,
// in seconds.
func ownCPUTime() (float64, error) {
	var sum float64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, fmt.Errorf("getrusage: %w", err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	}
	return sum, nil
}

// parseStat reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq in hundredths of a second.
func parseStat(text string) (busy, kernel float64, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, 0, fmt.Errorf("/proc/stat begins with %.80q", line)
	}
	for i, f := range fields[1:8] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		switch i {
		case 0, 1:
			busy += n / 100
		case 2, 5, 6:
			busy += n / 100
			kernel += n / 100
		}
	}
	return busy, kernel, nil
}
