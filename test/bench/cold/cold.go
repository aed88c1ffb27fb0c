package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/test/skeptest"
)

type bench struct {
	skep   *skeptest.Skep
	client *http.Client
	runs   int
	rows   []row
	// goImage is the Go function's.
	goImage string
}

// row is one function in one kind of sandbox.
type row struct{ driver, language, service string }

// deploy builds each image once and deploys it once for each driver.
func (b *bench) deploy(ctx context.Context, drivers []string) error {
	root, err := skeptest.Root()
	if err != nil {
		return err
	}
	for _, language := range []string{"go", "python"} {
		fmt.Fprintf(progress, "building %s\n", language)
		r, err := b.skep.Run(ctx, "image", "build", filepath.Join(root, "functions", "hello", language), "--name", "hello-"+language)
		if err != nil {
			return err
		}
		image := strings.TrimSpace(r.Stdout)
		if language == "go" {
			b.goImage = image
		}
		for _, d := range drivers {
			service := "hello-" + language + "-" + d
			// One request at a time: n requests at once are n cold starts.
			_, err := b.skep.Run(ctx, "deploy", service, "--image", image, "--sandbox", d, "--concurrency", "1")
			if err != nil {
				return err
			}
			b.rows = append(b.rows, row{d, language, service})
		}
	}
	return nil
}

// toZero waits until a service has no instance.
func (b *bench) toZero(ctx context.Context, service string) error {
	node := admin.NewClient(b.skep.Endpoints.Admin)
	for {
		all, err := node.Instances(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, i := range all {
			if i.Service == service {
				n++
			}
		}
		if n == 0 {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// request sends one request that must be answered well.
func (b *bench) request(ctx context.Context, service string) (http.Header, time.Duration, error) {
	began := time.Now()
	resp, body, err := b.skep.Get(ctx, b.client, service, "/") //nolint:bodyclose // Get has closed it
	took := time.Since(began)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("%s answered %s: %s", service, resp.Status, body)
	}
	return resp.Header, took, nil
}

// phases measures single cold starts.
func (b *bench) phases(ctx context.Context, w io.Writer) error {
	fmt.Fprintf(w, "### Cold boot to first response, by phase (medians of %d, ms)\n\n", b.runs)
	fmt.Fprintln(w, "| driver | function | first response | p90 | phases | warm request |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, r := range b.rows {
		fmt.Fprintf(progress, "cold starts of %s\n", r.service)
		var total, warm []time.Duration
		phases := map[string][]time.Duration{}
		var order []string
		for range b.runs {
			if err := b.toZero(ctx, r.service); err != nil {
				return err
			}
			h, took, err := b.request(ctx, r.service)
			if err != nil {
				return err
			}
			if h.Get("X-Skep-Start") != "booted" {
				return fmt.Errorf("%s: a start that should be cold is %q", r.service, h.Get("X-Skep-Start"))
			}
			total = append(total, took)
			for _, p := range timings(h) {
				if phases[p.name] == nil {
					order = append(order, p.name)
				}
				phases[p.name] = append(phases[p.name], p.took)
			}
			_, took, err = b.request(ctx, r.service)
			if err != nil {
				return err
			}
			warm = append(warm, took)
		}
		var parts []string
		for _, name := range order {
			if m := median(phases[name]); m >= 500*time.Microsecond {
				parts = append(parts, fmt.Sprintf("%s %.0f", strings.TrimPrefix(name, "start-"), float64(m)/1e6))
			}
		}
		fmt.Fprintf(w, "| %s | %s | **%.0f** | %.0f | %s | %.2f |\n", r.driver, r.language, float64(median(total))/1e6,
			float64(quantile(total, 0.9))/1e6, strings.Join(parts, ", "), float64(median(warm))/1e6)
	}
	fmt.Fprintln(w)
	return nil
}

type phase struct {
	name string
	took time.Duration
}

// timings reads the Server-Timing header.
func timings(h http.Header) []phase {
	var out []phase
	for _, entry := range strings.Split(h.Get("Server-Timing"), ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(entry), ";")
		ms, err := strconv.ParseFloat(strings.TrimPrefix(params, "dur="), 64)
		if err == nil {
			out = append(out, phase{name, time.Duration(ms * float64(time.Millisecond))})
		}
	}
	return out
}

// most is the largest number of cold starts at the same time.
const most = 16

// deployMany deploys a function of its own for each of the cold starts at the
// same time: requests for one function would be served by whichever of its
// instances is ready first.
func (b *bench) deployMany(ctx context.Context, driver, image string) error {
	var manifest strings.Builder
	for i := range most {
		fmt.Fprintf(&manifest, `apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    metadata: {annotations: {skep.dev/sandbox: %s}}
    spec: {containers: [{image: %q}]}
---
`, manyName(driver, i), driver, image)
	}
	path := filepath.Join(b.skep.Dir, "many-"+driver+".yaml")
	if err := os.WriteFile(path, []byte(manifest.String()), 0o600); err != nil {
		return err
	}
	_, err := b.skep.Run(ctx, "deploy", "-f", path)
	return err
}

func manyName(driver string, i int) string { return fmt.Sprintf("many-%s-%02d", driver, i) }

// concurrent measures many cold starts at the same time.
func (b *bench) concurrent(ctx context.Context, w io.Writer, drivers []string) error {
	fmt.Fprintf(w, "### n cold starts of a Go function at the same time, each a service of its own: time until the last has answered (medians of 3)\n\n")
	fmt.Fprintln(w, "| driver | n = 1 | n = 4 | n = 16 | starts/s at 16 |")
	fmt.Fprintln(w, "|---|---|---|---|---|")
	for _, driver := range drivers {
		if err := b.deployMany(ctx, driver, b.goImage); err != nil {
			return err
		}
		cells := []string{driver}
		var last time.Duration
		for _, n := range []int{1, 4, most} {
			fmt.Fprintf(progress, "%d cold starts at once under %s\n", n, driver)
			var took []time.Duration
			for range 3 {
				d, err := b.burst(ctx, driver, n)
				if err != nil {
					return err
				}
				took = append(took, d)
			}
			last = median(took)
			cells = append(cells, ms(last))
		}
		cells = append(cells, fmt.Sprintf("%.1f", most/last.Seconds()))
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintln(w)
	return nil
}

func (b *bench) burst(ctx context.Context, driver string, n int) (time.Duration, error) {
	for i := range n {
		if err := b.toZero(ctx, manyName(driver, i)); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			h, _, err := b.request(ctx, manyName(driver, i))
			if err == nil && h.Get("X-Skep-Start") != "booted" {
				err = fmt.Errorf("a start that should be cold is %q", h.Get("X-Skep-Start"))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}
