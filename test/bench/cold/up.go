package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/test/skeptest"
)

// measureUp measures `skep up` to ready, on a new and on an existing folder,
// and what it needs when idle.
func measureUp(ctx context.Context, w io.Writer, s *skeptest.Skep, runs int) error {
	var took []time.Duration
	var rss []int64
	var first time.Duration
	for i := range runs + 1 {
		began := time.Now()
		if err := s.Up(ctx); err != nil {
			return err
		}
		if d := time.Since(began); i == 0 {
			first = d
		} else {
			took = append(took, d)
		}
		if i > 0 && i <= 3 {
			// Idle, after the start's garbage has been collected.
			select {
			case <-time.After(10 * time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
			b, err := residentBytes(s.PID())
			if err != nil {
				return err
			}
			rss = append(rss, b)
		}
		if err := s.Stop(); err != nil {
			return err
		}
	}
	slices.Sort(rss)
	fmt.Fprintf(w, "### `skep up`\n\n| | median | min | max |\n|---|---|---|---|\n")
	fmt.Fprintf(w, "| to ready, existing data | %s | %s | %s |\n", ms(median(took)), ms(slices.Min(took)), ms(slices.Max(took)))
	fmt.Fprintf(w, "| to ready, empty data folder (1 run) | %s | | |\n", ms(first))
	if len(rss) > 0 {
		fmt.Fprintf(w, "| resident memory, idle 10 s | %d MiB | %d MiB | %d MiB |\n", rss[len(rss)/2]>>20, rss[0]>>20, rss[len(rss)-1]>>20)
	}
	fmt.Fprintln(w)
	return nil
}

func residentBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Clone(d)
	slices.Sort(s)
	return s[len(s)/2]
}

func quantile(d []time.Duration, q float64) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d)/1e6) }
