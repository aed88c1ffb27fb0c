package migration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox/qemu/migration"
)

func TestEnds(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, 2*time.Minute)
	t.Run("QEMU is killed", func(t *testing.T) {
		p := page(ctx, t, s, nil)
		p.kill()
		if err := p.end(ctx); err != nil {
			t.Error(err)
		}
		if err := p.source.Complete(ctx); !errors.Is(err, migration.ErrEnded) {
			t.Errorf("Complete: %v", err)
		}
	})
	t.Run("QEMU is killed while it takes pages", func(t *testing.T) {
		p := page(ctx, t, s, nil)
		_, _ = p.console.Write([]byte("sum\n")) // of all of them
		p.kill()
		if err := p.end(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		short, cancel := context.WithCancel(ctx)
		defer cancel()
		p := page(short, t, s, nil)
		cancel()
		if err := p.end(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, migration.ErrNotKilled) {
			t.Error(err)
		}
		select {
		case <-p.exited:
		default:
			t.Error("QEMU goes on without its source")
		}
	})
	t.Run("source fails", func(t *testing.T) {
		bad := &failing{Source: s.image(t)}
		p := page(ctx, t, s, func(c *migration.Config) { c.Memory = bad })
		bad.fail.Store(true)
		_, _ = p.console.Write([]byte("sum\n"))
		if err := p.end(ctx); !errors.Is(err, errFailing) {
			t.Error(err)
		}
		select {
		case <-p.exited:
		default:
			t.Error("QEMU goes on without its source")
		}
	})
	t.Run("QEMU gives up", func(t *testing.T) {
		ours, theirs := socketPair(t)
		m := launch(ctx, t, options{memory: fmt.Sprintf("memory-backend-ram,id=mem,size=%d", ramSize), incoming: theirs})
		damaged := *s.state
		damaged.Devices = bytes.Replace(damaged.Devices, []byte("serial"), []byte("cereal"), 1)
		src, err := migration.New(migration.Config{
			State: &damaged, Block: "mem", Memory: s.image(t), Conn: ours, Exited: m.exited,
			Kill: func(context.Context) error { return ignoreDone(m.cmd.Process.Kill()) },
		})
		if err != nil {
			t.Fatal(err)
		}
		m.capability(ctx, "postcopy-ram")
		m.receive(ctx)
		err = src.Serve(ctx)
		<-m.exited
		t.Logf("%v: %s", err, &m.stderr)
		if m.stderr.Len() == 0 {
			t.Error("QEMU does not say why")
		}
	})
}

// A damaged set costs time, not the machine.
func TestDamagedWorkingSet(t *testing.T) {
	s := snapshot(t)
	ctx := deadline(t, time.Minute)
	path, p := record(ctx, t, s)
	p.kill()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-100] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ws := openSet(t, path)
	p = page(ctx, t, s, func(c *migration.Config) { c.WorkingSet = ws })
	if err := p.source.Stats().PrefetchError; !errors.Is(err, pager.ErrDamaged) {
		t.Errorf("prefetch: %v", err)
	}
	p.ask(ctx, "touch 500", "touched")
	if d := p.source.Drift(); !errors.Is(d.Failed, pager.ErrDamaged) || !d.Drifted(0.3) {
		t.Errorf("drift %+v", d)
	}
	s.check(ctx, t, p.machine)
}
