package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// fake is a VM without a machine: the pool sees no more of one.
type fake struct {
	name  string
	n     int64
	once  sync.Once
	ended chan struct{}
	alive *atomic.Int64
}

func (f *fake) Ended() <-chan struct{} { return f.ended }
func (f *fake) Close() error {
	f.once.Do(func() { f.alive.Add(-1); close(f.ended) })
	return nil
}

type maker struct{ alive, started atomic.Int64 }

func (m *maker) launch(_ context.Context, name string) (*fake, error) {
	if name == "broken" {
		return nil, errors.New("no kernel")
	}
	m.alive.Add(1)
	return &fake{name: name, n: m.started.Add(1), ended: make(chan struct{}), alive: &m.alive}, nil
}

func newPool(total int64) (*Pool[*fake], *maker) {
	m := &maker{}
	return NewPool(total, map[string]Limits{
		"a": {128, 2}, "b": {128, 10}, "big": {256, 10}, "huge": {1000, 1}, "broken": {128, 1},
	}, m.launch), m
}

func get(t *testing.T, p *Pool[*fake], name string, wantCold bool) *fake {
	t.Helper()
	vm, cold, err := p.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if cold != wantCold {
		t.Errorf("%s: cold is %v, want %v", name, cold, wantCold)
	}
	return vm
}

func TestPoolLastUsedFirst(t *testing.T) {
	p, _ := newPool(1024)
	one, two := get(t, p, "b", true), get(t, p, "b", true)
	p.Put("b", one)
	p.Put("b", two)
	if vm := get(t, p, "b", false); vm != two {
		t.Errorf("got VM %d, want the last used, %d", vm.n, two.n)
	}
	if vm := get(t, p, "b", false); vm != one {
		t.Errorf("got VM %d, want %d", vm.n, one.n)
	}
	p.Put("b", one)
	p.Put("b", two)
	p.Close()
}

func TestPoolLimits(t *testing.T) {
	p, m := newPool(512)
	for _, test := range []struct {
		name string
		want error
	}{{"none", ErrNoFunction}, {"huge", ErrExhausted}, {"broken", ErrLaunch}, {"broken", ErrLaunch}} {
		if _, _, err := p.Get(t.Context(), test.name); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	a1, a2 := get(t, p, "a", true), get(t, p, "a", true)
	if _, _, err := p.Get(t.Context(), "a"); !errors.Is(err, ErrExhausted) {
		t.Errorf("beyond concurrency_limit: %v", err)
	}
	big := get(t, p, "big", true)
	if _, _, err := p.Get(t.Context(), "b"); !errors.Is(err, ErrExhausted) {
		t.Errorf("beyond the memory, nobody idle: %v", err)
	}
	p.Put("a", a1)
	p.Put("a", a2)
	b := get(t, p, "b", true) // in the place of a1, the longest idle
	select {
	case <-a1.ended:
	default:
		t.Error("the longest idle VM still runs")
	}
	select {
	case <-a2.ended:
		t.Error("a VM was sent away in vain")
	default:
	}
	if _, _, err := p.Get(t.Context(), "big"); !errors.Is(err, ErrExhausted) {
		t.Errorf("evicting would not do: %v", err)
	}
	if all, idle := p.Stats("a"); all != 1 || idle != 1 {
		t.Errorf("a has %d VMs, %d idle; want 1 and 1", all, idle)
	}
	p.Drop("big", big)
	p.Drop("b", b)
	p.Close()
	if n := m.alive.Load(); n != 0 {
		t.Errorf("%d VMs are left", n)
	}
	if _, _, err := p.Get(t.Context(), "a"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestPoolForgetsTheDead(t *testing.T) {
	p, _ := newPool(128)
	vm := get(t, p, "a", true)
	p.Put("a", vm)
	_ = vm.Close() // it dies by itself
	if again := get(t, p, "a", true); again == vm {
		t.Error("a dead VM was handed out")
	} else {
		p.Put("a", again)
	}
	p.Close()
}

// Whatever happens at the same time, memory and limits hold.
func TestPoolInvariants(t *testing.T) {
	const total = 600
	p, m := newPool(total)
	names := []string{"a", "b", "big", "broken", "none"}
	var users sync.WaitGroup
	for i := range 16 {
		users.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 500 {
				name := names[r.IntN(len(names))]
				vm, _, err := p.Get(context.Background(), name)
				if err != nil {
					continue
				}
				if vm.name != name {
					t.Errorf("got a VM of %s, want %s", vm.name, name)
				}
				p.mu.Lock()
				if p.used > total || p.kinds["a"].count > 2 {
					t.Errorf("used %d of %d, a has %d", p.used, total, p.kinds["a"].count)
				}
				p.mu.Unlock()
				switch r.IntN(4) {
				case 0:
					p.Drop(name, vm)
				case 1:
					_ = vm.Close()
					p.Put(name, vm)
				default:
					p.Put(name, vm)
				}
			}
		})
	}
	users.Wait()
	p.Close()
	if m.alive.Load() != 0 || p.used != 0 {
		t.Error(fmt.Errorf("%d VMs and %d MiB are left", m.alive.Load(), p.used))
	}
}
