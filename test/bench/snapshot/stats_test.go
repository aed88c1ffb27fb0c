package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	all := []time.Duration{5, 1, 4, 2, 3}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0, 1}, {0.2, 1}, {0.21, 2}, {0.5, 3}, {0.9, 5}, {1, 5}} {
		if got := quantile(all, c.q); got != c.want {
			t.Errorf("quantile %v is %d, want %d", c.q, got, c.want)
		}
	}
	if got := median([]time.Duration{1, 3, 2, 8}); got != 2 {
		t.Errorf("median of four is %d, want 2", got) // (2+3)/2, whole nanoseconds
	}
	if quantile(nil, 0.5) != 0 || median(nil) != 0 {
		t.Error("nothing has a quantile")
	}
}

func TestInterval(t *testing.T) {
	a := []time.Duration{90, 95, 100, 105, 110, 100, 98, 102, 99, 101}
	b := []time.Duration{45, 48, 50, 52, 55, 50, 49, 51, 50, 50}
	low, high := interval(a, b)
	if low < 1.8 || low > 2 || high < 2 || high > 2.2 {
		t.Errorf("interval %.2f to %.2f, want one close around 2", low, high)
	}
	if l, h := interval(a, b); l != low || h != high {
		t.Error("another interval of the same")
	}
	if low, high := interval(a, a[:1]); low > 1.3 || high < 1 {
		t.Errorf("interval %.2f to %.2f of one sample", low, high)
	}
	if low, high := interval(nil, b); low != 0 || high != 0 {
		t.Error("nothing has an interval")
	}
}

func TestParse(t *testing.T) {
	if n, err := parsePSS(strings.NewReader("55d-7ff ---p 00 [rollup]\nRss:  1324 kB\nPss:    93 kB\nPss_Anon: 7 kB\n")); err != nil || n != 93<<10 {
		t.Errorf("PSS is %d, %v", n, err)
	}
	if _, err := parsePSS(strings.NewReader("Rss: 1 kB\n")); err == nil {
		t.Error("PSS of nothing")
	}
	busy, kernel, err := parseStat("cpu  100 20 300 4000 5 6 7 0 0 0\ncpu0 1\n")
	if err != nil || busy != 4.33 || kernel != 3.13 {
		t.Errorf("busy %v, kernel %v, %v", busy, kernel, err)
	}
	if _, _, err := parseStat("intr 1"); err == nil {
		t.Error("no processors, no error")
	}
}

func TestPageCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 2*mib+5), 4*mib); err != nil { // after a hole
		t.Fatal(err)
	}
	cold, err := makeCold([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	if cold > 0 {
		t.Skipf("%.0f %% of a file cannot leave memory: its file system is memory", 100*cold)
	}
	if hot, err := makeHot([]string{path}); err != nil || hot != 1 {
		t.Errorf("%v of the file are in memory, %v", hot, err)
	}
	if cold, err := makeCold([]string{path}); err != nil || cold != 0 {
		t.Errorf("%v of the file are still in memory, %v", cold, err)
	}
}
