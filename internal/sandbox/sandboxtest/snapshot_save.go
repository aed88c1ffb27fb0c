package sandboxtest

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// testCannotSave asks for what must be refused, and leave nothing.
func (sn *snapshots) testCannotSave(t *testing.T) {
	fails := func(b *box, ctx context.Context, o sandbox.SaveOptions, want error) {
		t.Helper()
		if err := b.sb.(sandbox.Saver).Save(ctx, o); !errors.Is(err, want) || err == nil {
			t.Errorf("Save: %v, want %v", err, want)
		}
		if files, err := os.ReadDir(o.Dir); err != nil || len(files) > 0 {
			t.Errorf("a Save that failed left %v, %v", files, err)
		}
	}
	cancelled, cancel := context.WithCancel(sn.ctx(t))
	cancel()
	sn.base.http.CloseIdleConnections()
	dir := sn.folder(t)
	fails(sn.base, cancelled, sandbox.SaveOptions{Dir: dir}, context.Canceled)
	sn.base.check(t, &sn.live)
	if err := sn.base.sb.(sandbox.Saver).Save(sn.ctx(t), sandbox.SaveOptions{Dir: dir + "-missing"}); err == nil {
		t.Error("Save to a folder that is not there succeeded")
	}
	if sn.driver.Capabilities().LayeredSnapshot {
		// What was not restored differs from nothing.
		if err := sn.base.sb.(sandbox.Saver).Save(sn.ctx(t), sandbox.SaveOptions{Dir: dir, Diff: true}); err == nil {
			t.Error("Save of the difference from nothing succeeded")
		}
	} else {
		fails(sn.base, sn.ctx(t), sandbox.SaveOptions{Dir: dir, Diff: true}, sandbox.ErrUnsupported)
	}
	sn.base.check(t, &sn.live)

	// Interrupted in the middle, or done already; another one is not hindered.
	sn.base.http.CloseIdleConnections()
	short, cancel := context.WithTimeout(sn.ctx(t), 5*time.Millisecond)
	defer cancel()
	interrupted := sn.folder(t)
	if err := sn.base.sb.(sandbox.Saver).Save(short, sandbox.SaveOptions{Dir: interrupted}); err != nil {
		if files, err := os.ReadDir(interrupted); err != nil || len(files) > 0 {
			t.Errorf("an interrupted Save left %v, %v", files, err)
		}
	}
	sn.save(t, sn.base, false)
	sn.base.check(t, &sn.live)

	b := sn.clone(t, sandbox.Restore{Image: sn.image}, "cannot-save")
	b.create(t)
	fails(b, sn.ctx(t), sandbox.SaveOptions{Dir: dir}, sandbox.ErrNotRunning)
	b.destroy(t)
	fails(b, sn.ctx(t), sandbox.SaveOptions{Dir: dir}, sandbox.ErrNotRunning)
}
