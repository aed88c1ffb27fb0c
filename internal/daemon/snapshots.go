package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/fleet"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/serving"
	"github.com/skep-dev/skep/internal/snapshot"
	objects "github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/local"
	"github.com/skep-dev/skep/internal/snapshot/backend/s3"
)

const (
	// localLease is short: one process uses the folder, with one clock.
	localLease = time.Minute
	// cacheBytes bounds what is kept of an object store's content.
	cacheBytes = 4 << 30
	// storeCalls bounds the requests to an object store at the same time.
	storeCalls = 16
	// storeWait bounds how long an object store may take to answer at start.
	storeWait = 20 * time.Second
)

// startSnapshots opens the store and the node's catalog of it.
func (d *Daemon) startSnapshots(ctx context.Context, l *lower, j *journal.Journal) error {
	dir := filepath.Join(d.cfg.Data, "snapshots")
	at := d.cfg.SnapshotStore
	if at == "" {
		at = filepath.Join(dir, "store")
	}
	store, err := openStore(ctx, at, filepath.Join(dir, "cache"), d.cfg.Log)
	if err != nil {
		return fmt.Errorf("--snapshot-store: %w", err)
	}
	l.events = &eventRelay{}
	l.catalog, err = snapshots.Open(ctx, snapshots.Config{
		Dir: filepath.Join(dir, "local"), Store: store, Journal: j,
		MaxCopies: d.cfg.SnapshotLimit, MaxStore: d.cfg.SnapshotLimit, Patience: d.cfg.SnapshotWait,
		Log: d.cfg.Log, OnEvent: l.events.send, Registerer: l.registry,
	})
	if err != nil {
		return err
	}
	d.onStop("snapshots", l.catalog.Close)
	return nil
}

// checkStore checks what openStore opens.
func checkStore(at string) error {
	if !strings.Contains(at, "://") {
		return nil
	}
	u, err := url.Parse(at)
	switch {
	case err != nil:
		return err
	case u.Scheme == "file" && u.Host == "" && u.Path != "":
		return nil
	case u.Scheme != "s3":
		return fmt.Errorf("%q is neither a folder nor s3://BUCKET/PREFIX?endpoint=URL", at)
	case u.Host == "":
		return fmt.Errorf("%q names no bucket: s3://BUCKET/PREFIX?endpoint=URL", at)
	case u.Query().Get("endpoint") == "":
		return fmt.Errorf("%q names no endpoint: add ?endpoint=https://HOST[:PORT]", at)
	case u.User != nil:
		return errors.New("credentials do not belong into the address: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	return nil
}

// folderOf is the folder that an address of a store means, if it does.
func folderOf(at string) (dir string, ok bool) {
	u, err := url.Parse(at)
	switch {
	case err == nil && u.Scheme == "file":
		return u.Path, true
	case err == nil && u.Scheme == "s3":
		return "", false
	}
	return at, true
}

// prepareFolder looks after the folder that a snapshot is copied from or to, if
// it is one: the former must be there, of the latter all but its last element.
func prepareFolder(at string, from bool) (made bool, err error) {
	dir, ok := folderOf(at)
	if !ok {
		return false, nil
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return false, fmt.Errorf("store %s is not a folder", dir)
	case err == nil:
		return false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("store: %w", err)
	case from:
		return false, fmt.Errorf("there is no store %s: no such folder", dir)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("there is no folder %s, and it could not be made: %w", dir, err)
	}
	return true, nil
}

// openSource opens a store to read from, which may be read-only.
func openSource(ctx context.Context, at string, log *slog.Logger) (*snapshot.Store, error) {
	dir, ok := folderOf(at)
	if !ok {
		return openStore(ctx, at, "", log)
	}
	b, err := local.OpenReadable(dir)
	if err != nil {
		return nil, err
	}
	return snapshot.New(b, snapshot.Options{Workers: max(1, runtime.NumCPU()/2), Log: log, LeaseTTL: localLease}), nil
}

// openStore opens a snapshot store in a folder or an object store. The latter
// keeps what it has read in the cache folder, unless that is "".
func openStore(ctx context.Context, at, cache string, log *slog.Logger) (*snapshot.Store, error) {
	if err := checkStore(at); err != nil {
		return nil, err
	}
	// Half the CPUs: what is stored is in nobody's way, and what runs is.
	o := snapshot.Options{Workers: max(1, runtime.NumCPU()/2), Log: log}
	if dir, ok := folderOf(at); ok {
		b, err := local.Open(dir, local.Options{Volatile: snapshot.Volatile})
		if err != nil {
			return nil, err
		}
		o.LeaseTTL = localLease
		return snapshot.New(b, o), nil
	}
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	remote, err := s3.Open(ctx, s3.Config{
		Endpoint: u.Query().Get("endpoint"), Region: u.Query().Get("region"),
		Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"),
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", at, err)
	}
	b := objects.Retry(objects.Limit(remote, objects.LimitOptions{Calls: storeCalls}), objects.RetryOptions{
		OnRetry: func(op, name string, attempt int, err error) {
			log.Debug("snapshot store, trying again", "op", op, "object", name, "attempt", attempt, "error", err)
		},
	})
	if cache != "" {
		if b, err = objects.Cache(b, objects.CacheOptions{Dir: cache, MaxBytes: cacheBytes, Match: snapshot.Cacheable}); err != nil {
			return nil, err
		}
	}
	return snapshot.New(b, o), nil
}

// collectSnapshots keeps snapshots within their limit until ctx ends.
func collectSnapshots(ctx context.Context, c *snapshots.Catalog, log *slog.Logger) {
	t := time.NewTicker(10 * time.Minute)
	defer t.Stop()
	foreign := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		stats, err := c.Collect(ctx)
		if n := len(stats.Foreign); err == nil && n != foreign {
			if foreign = n; n > 0 {
				log.Warn("snapshots of another version of skep are in the store: as long as they are, what others leave there is not freed", "snapshots", n, "first", stats.Foreign[0])
			}
		}
		switch {
		case errors.Is(err, snapshot.ErrBusy):
			log.Debug("collect snapshots, later", "error", err)
		case err != nil && ctx.Err() == nil:
			log.Warn("collect snapshots", "error", err)
		case len(stats.Evicted) > 0:
			log.Info("removed snapshots that were not used for longest", "snapshots", len(stats.Evicted), "bytes", stats.Bytes)
		}
	}
}

// eventRelay hands the catalog's events on, once there is somebody.
type eventRelay struct {
	mu   sync.Mutex
	emit func(fleet.Event)
}

func (r *eventRelay) to(emit func(fleet.Event)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.emit = emit
}

func (r *eventRelay) send(e snapshots.Event) {
	r.mu.Lock()
	emit := r.emit
	r.mu.Unlock()
	if emit != nil {
		// Without the catalog's locks, which its caller may hold.
		go emit(fleet.Event{Key: gateway.RevisionKey{Namespace: e.Namespace, Name: e.Revision}, Reason: e.Reason, Err: e.Err})
	}
}

// remover avoids a nil pointer in an interface.
func remover(c *snapshots.Catalog) serving.SnapshotRemover {
	if c == nil {
		return nil
	}
	return c
}
