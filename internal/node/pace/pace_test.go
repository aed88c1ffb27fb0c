package pace

import (
	"testing"
	"time"
)

const ms = time.Millisecond

func note(s *Starts, k Kind, took ...time.Duration) {
	for _, d := range took {
		s.Answered(s.Note(k, d/2), d-d/2)
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	noon := time.Unix(1e9, 0)
	for _, tt := range []struct {
		name            string
		boots, restores []time.Duration
		hint            time.Duration
		want            Kind
	}{
		{name: "nothing known", want: Restore},
		{name: "too few restores", boots: []time.Duration{1, 1, 1}, restores: []time.Duration{5, 5}, want: Restore},
		{name: "no boot known", restores: []time.Duration{5, 5, 5}, want: Restore},
		{name: "a slow boot known from elsewhere", restores: []time.Duration{5, 5, 5}, hint: 6, want: Restore},
		{name: "a fast boot known from elsewhere", restores: []time.Duration{5, 5, 5}, hint: 4, want: Boot},
		{name: "measured goes above known", boots: []time.Duration{6}, restores: []time.Duration{5, 5, 5}, hint: 4, want: Restore},
		{name: "restores are faster", boots: []time.Duration{500, 400, 300}, restores: []time.Duration{50, 60, 70}, want: Restore},
		{name: "boots are faster", boots: []time.Duration{400, 96, 95}, restores: []time.Duration{118, 117, 119}, want: Boot},
		{name: "one that was slow does not count", boots: []time.Duration{96, 95, 2000, 97}, restores: []time.Duration{118, 117, 119}, want: Boot},
		{name: "alike", boots: []time.Duration{5, 5, 5}, restores: []time.Duration{5, 5, 5}, want: Restore},
		{name: "only the latest count", boots: []time.Duration{5, 5, 5, 9, 9, 9, 9, 9}, restores: []time.Duration{7, 7, 7}, want: Restore},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Starts{}
			for _, d := range tt.boots {
				note(s, Boot, d*ms)
			}
			for _, d := range tt.restores {
				note(s, Restore, d*ms)
			}
			if got := s.Choose(noon, tt.hint*ms); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// TestAgain: the slower one is tried now and then, the more seldom the slower
// it is, and is chosen when it has become the faster one.
func TestAgain(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	run := func(s *Starts, starts int, boot, restore time.Duration) (boots int) {
		for range starts {
			now = now.Add(10 * time.Second)
			if k := s.Choose(now, 0); k == Boot {
				boots++
				note(s, Boot, boot)
			} else {
				note(s, Restore, restore)
			}
		}
		return boots
	}
	s := &Starts{}
	note(s, Boot, 300*ms)
	if n := run(s, 1000, 300*ms, 100*ms); n < 5 || n > 11 { // each 10 * 3^2 starts
		t.Errorf("of 1000 starts %d were boots that take three times as long", n)
	}
	if n := run(s, 1000, 50*ms, 100*ms); n < 500 {
		t.Errorf("of 1000 starts only %d were boots, since they are faster", n)
	}
	if n := run(s, 1000, 50*ms, 20*ms); n > 400 {
		t.Errorf("of 1000 starts %d were boots, since restores are faster again", n)
	}
	// In a burst, one start is the trial.
	s = &Starts{}
	note(s, Boot, 110*ms, 110*ms, 110*ms)
	for range 20 {
		note(s, Restore, 100*ms)
	}
	n := 0
	for range 64 {
		if s.Choose(now, 0) == Boot {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of a burst of 64 starts were trials, want 1", n)
	}
}
