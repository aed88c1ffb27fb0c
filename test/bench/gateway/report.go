package main

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

func median[T cmp.Ordered](samples []sample, of func(sample) T) T {
	v := make([]T, len(samples))
	for i, s := range samples {
		v[i] = of(s)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// ratio is the median over the rounds of the rate of a relative to b, which
// cancels out what slows a whole round.
func ratio(a, b []sample) float64 {
	v := make([]float64, min(len(a), len(b)))
	for i := range v {
		v[i] = a[i].rps / b[i].rps
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// render makes the Markdown table.
func render(ctx context.Context, r map[string][]sample, o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d CPUs, %s, %s, %s. Medians of %d rounds of %d s, alternating; %d connections; keep-alive on both sides; upstream: nginx, a 14-byte body.\n\n",
		runtime.NumCPU(), runtime.Version(), version(ctx, "nginx", "-v"), version(ctx, "caddy", "version"), o.rounds, o.seconds, o.conns)
	b.WriteString("| | requests/s | of nginx | of Caddy | CPU us/request | p50 | p99 | p50, one connection | added p50 |\n|---|---|---|---|---|---|---|---|---|\n")
	base := median(r["direct"], func(s sample) time.Duration { return s.single })
	for _, n := range names {
		s := r[n]
		single := median(s, func(s sample) time.Duration { return s.single })
		added, ofNginx, ofCaddy := "-", "-", "-"
		if n != "direct" {
			added = ms(single - base)
			ofNginx = fmt.Sprintf("%.2f", ratio(s, r["nginx"]))
			ofCaddy = fmt.Sprintf("%.2f", ratio(s, r["caddy"]))
		}
		fmt.Fprintf(&b, "| %s | %.0f | %s | %s | %.1f | %s | %s | %s | %s |\n", n,
			median(s, func(s sample) float64 { return s.rps }), ofNginx, ofCaddy,
			float64(median(s, func(s sample) time.Duration { return s.cpu }).Nanoseconds())/1000,
			ms(median(s, func(s sample) time.Duration { return s.p50 })),
			ms(median(s, func(s sample) time.Duration { return s.p99 })), ms(single), added)
	}
	b.WriteString("\nTimes in milliseconds, except CPU: that of the proxy (direct: of the upstream), which other load on the machine hardly changes.\n")
	return b.String()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d.Microseconds())/1000) }

// version is the first line of what a tool says of itself.
func version(ctx context.Context, tool, arg string) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, arg).CombinedOutput()
	if err != nil {
		return tool + " (version unknown)"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	line = strings.TrimPrefix(line, "nginx version: ")
	if !strings.Contains(line, tool) {
		line = tool + " " + line
	}
	return line
}
