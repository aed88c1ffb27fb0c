package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one measurement of one of names in one round.
type sample struct {
	rps      float64       // at -conns connections
	p50, p99 time.Duration // at -conns connections
	single   time.Duration // p50 at one connection
	requests int64
	cpu      time.Duration // of the server or proxy, per request at -conns connections
}

// measure alternates between the measured in every round, so that a machine
// that slows down slows all of them.
func measure(ctx context.Context, f *fleet, o options) (map[string][]sample, error) {
	results := map[string][]sample{}
	for _, n := range names { // warm up
		if _, err := wrk(ctx, f.addr[n], o.conns, 1); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", n, err, f.output())
		}
	}
	for round := range o.rounds {
		order := slices.Clone(names)
		for range round % len(order) { // another begins each time
			order = append(order[1:], order[0])
		}
		for _, n := range order {
			before, err := cpuOf(f.group[n])
			if err != nil {
				return nil, err
			}
			many, err := wrk(ctx, f.addr[n], o.conns, o.seconds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", n, err)
			}
			after, err := cpuOf(f.group[n])
			if err != nil {
				return nil, err
			}
			many.cpu = (after - before) / time.Duration(max(1, many.requests))
			one, err := wrk(ctx, f.addr[n], 1, o.seconds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", n, err)
			}
			many.single = one.p50
			results[n] = append(results[n], many)
			fmt.Fprintf(os.Stderr, "round %d/%d %-7s %8.0f req/s  p50 %-9v p99 %-9v single p50 %-9v cpu/request %v\n", round+1, o.rounds, n, many.rps, many.p50, many.p99, many.single, many.cpu)
		}
	}
	return results, nil
}

func wrk(ctx context.Context, addr string, conns, seconds int) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+20*time.Second)
	defer cancel()
	threads := min(2, conns)
	out, err := exec.CommandContext(ctx, "wrk", "-t", strconv.Itoa(threads), "-c", strconv.Itoa(conns),
		"-d", strconv.Itoa(seconds)+"s", "--latency", "-H", "Host: "+host, "http://"+addr+"/").CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	return parseWrk(string(out))
}

var (
	rpsLine     = regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`)
	countLine   = regexp.MustCompile(`(?m)^\s+(\d+) requests in `)
	percentLine = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([0-9.]+)(us|ms|s)$`)
)

// parseWrk reads the output of wrk --latency. Any error response or broken
// connection spoils a measurement.
func parseWrk(out string) (sample, error) {
	var s sample
	if strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") {
		return s, errors.New("wrk saw errors:\n" + out)
	}
	m := rpsLine.FindStringSubmatch(out)
	if m == nil {
		return s, errors.New("wrk printed no rate:\n" + out)
	}
	var err error
	if s.rps, err = strconv.ParseFloat(m[1], 64); err != nil {
		return s, fmt.Errorf("wrk's rate: %w", err)
	}
	m = countLine.FindStringSubmatch(out)
	if m == nil {
		return s, errors.New("wrk printed no number of requests:\n" + out)
	}
	if s.requests, err = strconv.ParseInt(m[1], 10, 64); err != nil {
		return s, fmt.Errorf("wrk's number of requests: %w", err)
	}
	for _, m := range percentLine.FindAllStringSubmatch(out, -1) {
		d, err := time.ParseDuration(m[2] + m[3])
		if err != nil {
			return s, fmt.Errorf("wrk's latency: %w", err)
		}
		if m[1] == "50" {
			s.p50 = d
		} else {
			s.p99 = d
		}
	}
	if s.p50 == 0 || s.p99 == 0 {
		return s, errors.New("wrk printed no latencies:\n" + out)
	}
	return s, nil
}
