package qemu_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

func TestDev(t *testing.T) {
	if os.Getenv("DEV") == "" {
		t.Skip()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	l := newLab(ctx, t)
	sb := l.boot(ctx, l.spec(ctx))
	if err := sb.(sandbox.PortWaiter).WaitPort(ctx, 8080); err != nil {
		t.Fatal(err)
	}
	l.get(ctx, sb, "/", "hello")
	img := l.save(ctx, sb, sandbox.SaveOptions{})
	_ = sb.Destroy(ctx)
	for range 6 {
		spec := l.spec(ctx)
		begin := time.Now()
		clone, err := l.d.Prepare(ctx, spec, sandbox.Restore{Image: img})
		if err != nil {
			t.Fatal(err)
		}
		p := time.Since(begin)
		s0, _ := clone.Stats(ctx)
		l.start(ctx, clone)
		s1, _ := clone.Stats(ctx)
		at := time.Since(begin)
		l.get(ctx, clone, "/", "hello")
		s2, _ := clone.Stats(ctx)
		t.Logf("prepared %v started %v answered %v; cpu %v %v %v; %v", p, at-p, time.Since(begin)-at, s0.CPUTime, s1.CPUTime-s0.CPUTime, s2.CPUTime-s1.CPUTime, clone.Phases())
		_ = clone.Destroy(ctx)
	}
}
