package autoscale

import (
	"testing"
	"time"
)

func TestDesired(t *testing.T) {
	p := Policy{Target: 10, StableWindow: 60 * time.Second, IdleAfter: 90 * time.Second}
	type step struct {
		at          int // seconds
		concurrency float64
		want        int
	}
	tests := []struct {
		name  string
		edit  func(*Policy)
		steps []step
	}{
		{"zero stays zero", nil, []step{{0, 0, 0}, {100, 0, 0}}},
		{"a rise is answered at once", nil, []step{{0, 1, 1}, {1, 11, 2}, {2, 95, 10}}},
		{"a fall waits for the window", nil, []step{{0, 50, 5}, {30, 1, 5}, {60, 1, 5}, {61, 1, 1}}},
		{"the window keeps its highest", nil, []step{{0, 50, 5}, {10, 30, 5}, {61, 0, 3}, {71, 0, 1}}},
		{"the last one goes after IdleAfter", nil, []step{{0, 1, 1}, {61, 0, 1}, {89, 0, 1}, {90, 0, 0}}},
		{"a request in between keeps it", nil, []step{{0, 1, 1}, {80, 1, 1}, {100, 0, 1}, {169, 0, 1}, {170, 0, 0}}},
		{"min scale", func(p *Policy) { p.MinScale = 2 }, []step{{0, 0, 2}, {1, 1, 2}, {2, 30, 3}, {400, 0, 2}}},
		{"max scale", func(p *Policy) { p.MaxScale = 3 }, []step{{0, 1000, 3}}},
		{"max below min loses to neither above max", func(p *Policy) { p.MinScale, p.MaxScale = 5, 3 }, []step{{0, 0, 3}}},
		{"rounding is no request", nil, []step{{0, 10 + 1e-9, 1}, {1, 10.5, 2}}},
		{"a short request is one", nil, []step{{0, 1e-6, 1}, {89, 0, 1}}},
		{"one request each", func(p *Policy) { p.Target = 1 }, []step{{0, 3, 3}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := p
			if tt.edit != nil {
				tt.edit(&p)
			}
			var s Scaler
			base := time.Unix(1_000_000, 0)
			for _, st := range tt.steps {
				if got := s.Desired(base.Add(time.Duration(st.at)*time.Second), p, st.concurrency); got != st.want {
					t.Fatalf("at %d s with %v requests: desired %d, want %d", st.at, st.concurrency, got, st.want)
				}
			}
		})
	}
}

func TestSettled(t *testing.T) {
	p := Policy{Target: 1, StableWindow: 10 * time.Second, IdleAfter: 30 * time.Second}
	var s Scaler
	now := time.Unix(1_000_000, 0)
	if !s.Settled(now, p) {
		t.Error("a new scaler is not settled")
	}
	s.Touch(now)
	if s.Settled(now, p) || s.Desired(now, p, 0) != 1 {
		t.Error("a touched scaler gives its instance up at once")
	}
	now = now.Add(31 * time.Second)
	if got := s.Desired(now, p, 0); got != 0 || !s.Settled(now, p) {
		t.Errorf("after the idle time: desired %d, settled %v", got, s.Settled(now, p))
	}
}
