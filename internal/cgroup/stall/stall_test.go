package stall

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestStalledSince(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name            string
		full, cpu, user time.Duration // of 20 s
		faults          int64
		held            int64 // MiB of 48
		want            bool
	}{
		{"emulated, measured", 5730 * time.Millisecond, 16610 * time.Millisecond, 670 * time.Millisecond, 4900, 47, true},
		{"waits for a disk", 18 * s, 2 * s, s / 10, 2000, 46, true},
		{"works, and waits too", 5 * s, 17 * s, 10 * s, 2000, 47, false},
		{"rests between", 5 * s, s, s / 10, 2000, 47, false},
		{"reads a long file", s, 20 * s, s, 10, 46, false},
		{"has room", 5730 * time.Millisecond, 16610 * time.Millisecond, 670 * time.Millisecond, 4900, 40, false},
		{"v1", 0, 19 * s, s, 5000, 47, true},
		{"v1 reads a long file", 0, 19 * s, s, 100, 47, false},
		{"v1 works", 0, 19 * s, 5 * s, 5000, 47, false},
		{"v1 has room", 0, 19 * s, s, 5000, 40, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := Usage{At: time.Unix(100, 0), CPU: 2 * time.Hour, User: time.Hour, Faults: 7000, Held: c.held << 20, Limit: 48 << 20}
			if c.full > 0 {
				a.Full = time.Hour
			}
			b := a
			b.At = b.At.Add(20 * s)
			b.Full, b.CPU, b.User, b.Faults = b.Full+c.full, b.CPU+c.cpu, b.User+c.user, b.Faults+c.faults
			if got := b.StalledSince(a); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
			if b.StalledSince(b) {
				t.Error("stalled in no time")
			}
			b.Limit, a.Limit = 0, 0
			if b.StalledSince(a) {
				t.Error("stalled without a limit")
			}
		})
	}
}

const pressure = "some avg10=7.65 avg60=1.52 avg300=0.30 total=873227\nfull avg10=7.47 avg60=1.48 avg300=0.28 total=845541\n"

func TestRead(t *testing.T) {
	dir := folder(t, map[string]string{
		"memory.max": "50331648\n", "memory.current": "48000000\n", "memory.pressure": pressure,
		"cpu.stat":    "usage_usec 12\nuser_usec 7\nsystem_usec 5\n",
		"memory.stat": "anon 1\ninactive_file 300\nactive_file 20\npgfault 9\npgmajfault 8\n",
	})
	got, err := Read(dir)
	got.At = time.Time{}
	want := Usage{
		Full: 845541 * time.Microsecond, CPU: 12 * time.Microsecond, User: 7 * time.Microsecond,
		Faults: 8, Held: 48000000 - 320, Limit: 48 << 20,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	put(t, dir, "memory.max", "max\n")
	if got, err := Read(dir); err != nil || got.Limit != 0 {
		t.Errorf("without a limit: %+v, %v", got, err)
	}
	for _, text := range []string{"many", ""} {
		put(t, dir, "memory.max", text)
		if got, err := Read(dir); err == nil {
			t.Errorf("a limit of %q: %+v", text, got)
		}
	}
	put(t, dir, "memory.max", "1\n")
	put(t, dir, "memory.stat", "pgmajfault\n")
	if got, err := Read(dir); err == nil {
		t.Errorf("a line without a number: %+v", got)
	}
	if got, err := Read(t.TempDir()); !os.IsNotExist(err) {
		t.Errorf("no cgroup: %+v, %v", got, err)
	}
}

func TestReadV1(t *testing.T) {
	memory := folder(t, map[string]string{
		"memory.limit_in_bytes": "50331648\n", "memory.usage_in_bytes": "48000000\n",
		"memory.stat": "rss 1\ninactive_file 1\ntotal_inactive_file 300\ntotal_active_file 20\npgmajfault 1\ntotal_pgmajfault 8\n",
	})
	cpu := folder(t, map[string]string{"cpuacct.stat": "user 30\nsystem 12\n"})
	got, err := ReadV1(memory, cpu)
	got.At = time.Time{}
	want := Usage{CPU: 420 * time.Millisecond, User: 300 * time.Millisecond, Faults: 8, Held: 48000000 - 320, Limit: 48 << 20}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := ReadV1(memory, t.TempDir()); err == nil {
		t.Errorf("no cgroup: %+v", got)
	}
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		put(t, dir, name, text)
	}
	return dir
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
