package guest

import (
	"testing"
	"time"
)

func TestStalled(t *testing.T) {
	for _, c := range []struct {
		name            string
		full, cpu, user time.Duration // of 20 s
		held            int64         // MiB of 48
		want            bool
	}{
		{"emulated, measured", 5730 * time.Millisecond, 16610 * time.Millisecond, 670 * time.Millisecond, 47, true},
		{"waits for a disk", 18 * time.Second, 2 * time.Second, 100 * time.Millisecond, 46, true},
		{"works, and waits too", 5 * time.Second, 17 * time.Second, 10 * time.Second, 47, false},
		{"rests between", 5 * time.Second, time.Second, 100 * time.Millisecond, 47, false},
		{"reads a long file", time.Second, 20 * time.Second, time.Second, 46, false},
		{"has room", 5730 * time.Millisecond, 16610 * time.Millisecond, 670 * time.Millisecond, 40, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := usage{at: time.Unix(100, 0), full: time.Hour, cpu: 2 * time.Hour, user: time.Hour, held: c.held << 20, limit: 48 << 20}
			b := a
			b.at = b.at.Add(20 * time.Second)
			b.full, b.cpu, b.user = b.full+c.full, b.cpu+c.cpu, b.user+c.user
			if got := stalled(a, b); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	c := &cgroup{dir: t.TempDir()}
	const pressure = "some avg10=7.65 avg60=1.52 avg300=0.30 total=873227\nfull avg10=7.47 avg60=1.48 avg300=0.28 total=845541\n"
	for file, text := range map[string]string{"memory.pressure": pressure, "cpu.stat": "usage_usec 12\nuser_usec 7\n", "memory.events": "max\n"} {
		if err := c.set(file, text); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := c.fields("memory.pressure"); err != nil || f["some"] != 873227 || f["full"] != 845541 {
		t.Errorf("%v, %v", f, err)
	}
	if f, err := c.fields("cpu.stat"); err != nil || f["usage_usec"] != 12 || f["user_usec"] != 7 {
		t.Errorf("%v, %v", f, err)
	}
	if f, err := c.fields("memory.events"); err == nil {
		t.Errorf("%v of a line without a number", f)
	}
}
