package network_test

import (
	"context"
	"os/exec"
	"sync"
	"testing"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// A TAP device can be attached to as soon as it is acquired, also while this
// process starts others: between fork and exec those hold copies of all its
// files.
func TestTAPWhileStartingProcesses(t *testing.T) {
	m := manager(t, testConfig(t))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = exec.CommandContext(ctx, "true").Run()
			}
		})
	}
	for range 40 {
		l, err := m.Acquire(ctx, network.Options{Kind: sandbox.LinkTAP})
		if err != nil {
			t.Fatal(err)
		}
		f := openTAP(t, l.Link())
		f.Close()
		if err := l.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
