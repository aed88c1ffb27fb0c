package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// ErrEndedBySnapshot is returned if an instance did not survive the making of a
// snapshot: it is Done, or will be in a moment.
var ErrEndedBySnapshot = errors.New("the instance did not survive the making of a snapshot")

const (
	// saveTimeout bounds the making of a snapshot, hooks not counted.
	saveTimeout = time.Minute
	// endPatience is how long it may take until the end of a sandbox is known
	// of which no snapshot could be made.
	endPatience = 200 * time.Millisecond
)

// saveReady makes a snapshot of an instance that has had no request, if its
// policy wants one now. An error harms nobody, unless it is ErrEndedBySnapshot.
func (i *Instance) saveReady(ctx context.Context) error {
	if !i.policySays(snapshots.Situation{Moment: snapshots.AtReady}) {
		return nil
	}
	err := i.Save(ctx, false)
	i.phase("snapshot")
	i.readyAt = time.Now()
	if errors.Is(err, snapshots.ErrNotNow) {
		return nil
	}
	return err
}

func (i *Instance) policySays(s snapshots.Situation) bool {
	s.Generation = i.generation()
	return i.options.Policy != nil && !i.have && i.options.Policy.Save(s)
}

// generation is that of the snapshot that the instance was restored from.
func (i *Instance) generation() int {
	if i.use == nil {
		return 0
	}
	return i.use.Generation
}

// NextSave is after how many responses in all a snapshot is to be made, when
// the instance has no request, given how many there were; 0 means not at all.
func (i *Instance) NextSave(responses uint64) uint64 {
	if i.options.Policy == nil || i.have {
		return 0
	}
	return i.options.Policy.Next(snapshots.Situation{Responses: responses, Generation: i.generation()})
}

// SaveAfter is before when it is too early to try again after a failure; the
// zero time if there was none.
func (i *Instance) SaveAfter() time.Time {
	key := i.SnapshotKey()
	if key == "" || i.node.cfg.Snapshots == nil {
		return time.Time{}
	}
	return i.node.cfg.Snapshots.SaveAfter(key)
}

// SaveNow asks the policy about an instance that is out of rotation or at its
// end, and makes the snapshot. saved is also true if there is one already. The
// error is snapshots.ErrNotNow if it is too early after a failure, or another
// instance makes one, and ErrEndedBySnapshot if the instance did not survive.
func (i *Instance) SaveNow(ctx context.Context, m snapshots.Moment, responses uint64) (saved bool, err error) {
	if !i.policySays(snapshots.Situation{Moment: m, Responses: responses, Uptime: time.Since(i.readyAt)}) {
		return false, nil
	}
	err = i.Save(ctx, false)
	return err == nil, err
}

// Save makes a snapshot of the instance, which must have no request and no
// connection. It goes on afterwards, with or without error, unless Done says
// otherwise (ErrEndedBySnapshot). Without force, that there is a snapshot
// already is no error, and nothing is done.
func (i *Instance) Save(ctx context.Context, force bool) error {
	saver, ok := i.sandbox.(sandbox.Saver)
	if !ok || i.node.cfg.Snapshots == nil {
		return fmt.Errorf("the sandbox driver %s can make no snapshots", i.driver.Name())
	}
	i.saveMu.Lock()
	defer i.saveMu.Unlock()
	if c := i.spare.take(); c != nil {
		_ = c.Close() // or it would be open in the snapshot
	}
	if err := i.describe(ctx); err != nil {
		return err
	}
	w := i.want
	o := snapshots.CreateOptions{Force: force, On: i.use}
	w.Boot, w.Generation = i.took, 1
	if i.use != nil {
		w.Boot, w.Generation = i.use.Boot, i.use.Generation+1
		// One that would be too deep is whole, and the start of a new chain.
		o.Diff = i.driver.Capabilities().LayeredSnapshot && len(i.use.Image.Dirs) <= i.options.Diffs
	}
	err := i.node.cfg.Snapshots.Create(ctx, w, o, func(ctx context.Context, dir string, diff bool) error {
		return i.save(ctx, saver, sandbox.SaveOptions{Dir: dir, Diff: diff})
	})
	if errors.Is(err, snapshots.ErrHave) {
		return nil
	}
	if err == nil {
		i.node.cfg.Log.Info("snapshot made", "namespace", i.launch.Namespace, "revision", i.launch.Revision, "id", i.id)
		i.node.pool.poke()
	}
	return err
}

func (i *Instance) save(ctx context.Context, saver sandbox.Saver, o sandbox.SaveOptions) error {
	if err := i.tell(ctx, i.options.Before); err != nil {
		return errors.Join(fmt.Errorf("before-snapshot hook: %w", err), i.goOn(ctx))
	}
	saving, cancel := context.WithTimeout(ctx, i.node.saveTimeout)
	err := saver.Save(saving, o)
	cancel()
	patience := time.Millisecond
	if err != nil { // the sandbox's end may be why, and not be known yet
		patience = i.node.endPatience
	}
	if i.ended(patience) {
		i.savedToEnd.Store(true)
		return errors.Join(err, ErrEndedBySnapshot)
	}
	return errors.Join(err, i.goOn(ctx))
}

// goOn tells the function that it goes on. One that was told that there will
// be a snapshot, and not that there was one, would be of no use: it is ended.
func (i *Instance) goOn(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := i.tell(ctx, i.options.After)
	if err == nil {
		return nil
	}
	i.savedToEnd.Store(true)
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	return errors.Join(fmt.Errorf("after-restore hook of the instance that goes on: %w", err), ErrEndedBySnapshot, i.sandbox.Destroy(ctx))
}

// ended tells whether the function's process has ended, or does so in a moment.
func (i *Instance) ended(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := i.sandbox.Wait(ctx)
	return err == nil || ctx.Err() == nil
}

// SnapshotKey is the key of the instance's snapshots; "" before it is known.
func (i *Instance) SnapshotKey() string {
	i.saveMu.Lock()
	defer i.saveMu.Unlock()
	return i.want.Key
}

// Recording tells whether the instance records its working set.
func (i *Instance) Recording() bool { return i.use != nil && i.use.Record }

// Answered is told how long the first response took: what a start has left
// undone shows there.
func (i *Instance) Answered(took time.Duration) {
	if i.sample != nil {
		i.starts.Answered(i.sample, took)
	}
}

// EndRecording is called when the first response is out. It adds the working
// set to the snapshot, or finds out that the one that is there is outdated.
func (i *Instance) EndRecording(ctx context.Context) error {
	if i.use == nil {
		return nil
	}
	if !i.use.Record {
		i.checkDrift()
		return nil
	}
	r, ok := i.sandbox.(sandbox.Recorder)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	err := i.use.Recorded(ctx, func(ctx context.Context, path string) error {
		if err := r.Recorded(ctx, path); err != nil {
			return err
		}
		return mergeSets(ctx, i.options.WorkingSet, i.use.Image, path)
	})
	if err == nil {
		i.node.pool.poke()
	}
	return err
}

// tell calls a hook of the function and waits for it.
func (i *Instance) tell(ctx context.Context, h snapshots.Hook) error {
	if h.Path == "" && h.Signal == 0 {
		return nil
	}
	timeout := h.Timeout
	if timeout <= 0 {
		timeout = snapshots.DefaultHookTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if h.Path != "" {
		if err := i.post(ctx, h.Path); err != nil {
			return err
		}
	}
	if h.Signal != 0 {
		if err := i.sandbox.Signal(ctx, os.Signal(h.Signal)); err != nil {
			return fmt.Errorf("signal %s: %w", h.Signal, err)
		}
	}
	return nil
}

// post sends an empty POST, on a connection that is closed afterwards.
func (i *Instance) post(ctx context.Context, path string) error {
	tr := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return i.sandbox.Dial(ctx, i.launch.Port) },
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://function"+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	req.Header.Set("User-Agent", "skep")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("POST %s answered %s", path, resp.Status)
	}
	return nil
}
