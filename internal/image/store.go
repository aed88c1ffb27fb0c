package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Config of a Store. Zero fields mean the defaults.
type Config struct {
	// Dir holds the store. Open makes it.
	Dir string
	Log *slog.Logger
	// MaxImageBytes bounds an image: its blobs together, and separately the
	// files in it. Default 16 GiB.
	MaxImageBytes int64
	// MaxFiles bounds the tar entries of an image. Default 2,000,000.
	MaxFiles int
	// MaxUploads bounds unfinished uploads to the registry endpoint. Default 64.
	MaxUploads int
	// Platform of all images in the store. Default linux and this machine's architecture.
	Platform v1.Platform
}

// Store keeps images. All methods are safe for concurrent use.
type Store struct {
	cfg  Config
	dir  string
	log  *slog.Logger
	lock *os.File

	stop   context.Context // done when the store closes
	cancel context.CancelFunc
	wg     sync.WaitGroup // background preparations

	pulls    flights[*Image]
	blobs    flights[struct{}]
	rootfses flights[struct{}]
	slots    chan struct{} // bounds concurrent flattening
	uploads  uploads
	private  atomic.Int64 // numbers pulls that must not be shared

	mu     sync.Mutex
	index  index
	hosts  []string             // of our own registry endpoint
	pins   map[string]int       // digests and rootfs keys that GC must spare
	recent map[string]time.Time // blobs pushed, whose manifest may yet come
}

// Open opens the store in cfg.Dir, making it if it does not exist. It
// removes what an earlier process left unfinished. Close frees it.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("opening image store: Config.Dir is empty")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxImageBytes <= 0 {
		cfg.MaxImageBytes = 16 << 30
	}
	if cfg.MaxFiles <= 0 {
		cfg.MaxFiles = 2_000_000
	}
	if cfg.MaxUploads <= 0 {
		cfg.MaxUploads = 64
	}
	if cfg.Platform.OS == "" {
		cfg.Platform.OS = "linux"
	}
	if cfg.Platform.Architecture == "" {
		cfg.Platform.Architecture = runtime.GOARCH
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", cfg.Dir, err)
	}
	s := &Store{cfg: cfg, dir: dir, log: cfg.Log, slots: make(chan struct{}, 2), pins: map[string]int{}, recent: map[string]time.Time{}}
	s.uploads.byID = map[string]*upload{}
	if err := s.open(); err != nil {
		if s.lock != nil {
			_ = s.lock.Close()
		}
		return nil, fmt.Errorf("opening image store %s: %w", dir, s.ioError(err))
	}
	s.stop, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: stop it, or use its registry endpoint", ErrStoreInUse)
		}
		return fmt.Errorf("locking: %w", err)
	}
	// Holding the lock, everything in tmp is somebody's who died.
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return err
	}
	for _, d := range []string{"tmp", "blobs/sha256", "diffs", "rootfs"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Stat(s.path("oci-layout")); errors.Is(err, fs.ErrNotExist) {
		if err := s.writeFile("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
			return err
		}
	}
	return s.index.load(s.path("index.json"))
}

// Close cancels what is under way, waits for it to end and frees the store.
func (s *Store) Close() error {
	s.cancel()
	s.pulls.wait()
	s.blobs.wait()
	s.rootfses.wait()
	s.mu.Lock()   // whoever is starting something has started it now
	s.mu.Unlock() //nolint:staticcheck // a barrier
	s.wg.Wait()
	s.uploads.removeAll()
	return s.lock.Close()
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// ioError names the case that the user can do something about.
func (s *Store) ioError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %s has no space left: free some, or remove images (skep image remove): %w", ErrDiskFull, s.dir, err)
	}
	return err
}

// tempFile makes a file that commit gives its name. Until then, and if
// the process dies, it is no part of the store.
func (s *Store) tempFile() (*os.File, error) {
	f, err := os.CreateTemp(s.path("tmp"), "")
	if err != nil {
		return nil, s.ioError(fmt.Errorf("making a temporary file: %w", err))
	}
	return f, nil
}

// discard closes and removes a temporary file that may have been committed.
func discard(f *os.File) {
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// commit makes f durable under a name in the store.
func (s *Store) commit(f *os.File, elem ...string) error {
	to := s.path(elem...)
	// Others are kept away by the store's folder. A sandbox's monitor, with a
	// user of its own, can read a file that it is given.
	err := f.Chmod(0o644)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err == nil {
		err = syncDir(filepath.Dir(to))
	}
	if err != nil {
		return s.ioError(fmt.Errorf("storing %s: %w", filepath.Join(elem...), err))
	}
	return nil
}

// writeFile atomically replaces a small file of the store.
func (s *Store) writeFile(name string, data []byte) error {
	f, err := s.tempFile()
	if err != nil {
		return err
	}
	defer discard(f)
	if _, err := f.Write(data); err != nil {
		return s.ioError(fmt.Errorf("writing %s: %w", name, err))
	}
	return s.commit(f, name)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
