// Command gateway benchmarks the warm path of Skep's gateway against nginx
// and Caddy. All three proxy to the same upstream, one after the other in
// several rounds of one run, with the same load tool; the upstream without a
// proxy is the baseline. It prints a Markdown table.
//
// It needs nginx, caddy and wrk: apt-get install nginx-light caddy wrk.
//
//	go run ./test/bench/gateway [-rounds 5] [-seconds 5] [-conns 64] [-o FILE]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

type options struct {
	rounds, seconds, conns int
	out, profile           string
}

func main() {
	var o options
	role := flag.String("role", "", "internal: run as this part of the benchmark")
	listen := flag.String("listen", "", "internal: address of the role")
	to := flag.String("to", "", "internal: address of the upstream")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; the table shows medians")
	flag.IntVar(&o.seconds, "seconds", 5, "seconds of load for each measurement")
	flag.IntVar(&o.conns, "conns", 64, "connections of the throughput measurement")
	flag.StringVar(&o.out, "o", "", "also write the table to this file")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of the gateway to this file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch *role {
	case "":
		err = run(ctx, o)
	case "gateway":
		err = serveGateway(ctx, *listen, *to, o.profile)
	default:
		err = fmt.Errorf("-role %s: there is only gateway", *role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.rounds < 1 || o.seconds < 1 || o.conns < 2 {
		return errors.New("-rounds and -seconds must be at least 1, -conns at least 2")
	}
	for tool, pkg := range map[string]string{"nginx": "nginx-light", "caddy": "caddy", "wrk": "wrk"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install %s", tool, pkg)
		}
	}
	// Twice the expected time; nothing here may hang for ever.
	limit := 2*time.Duration(o.rounds*len(names)*2*(o.seconds+1))*time.Second + time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "skep-bench-gateway-")
	if err != nil {
		return fmt.Errorf("making a temporary folder: %w", err)
	}
	defer os.RemoveAll(dir)
	f, err := startFleet(ctx, dir, o)
	defer func() { err = errors.Join(err, f.stop()) }()
	if err != nil {
		return err
	}
	results, err := measure(ctx, f, o)
	if err != nil {
		return err
	}
	table := render(ctx, results, o)
	if _, err := io.WriteString(os.Stdout, table); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	if o.out != "" {
		if err := os.WriteFile(o.out, []byte(table), 0o644); err != nil {
			return fmt.Errorf("writing -o: %w", err)
		}
	}
	return nil
}
