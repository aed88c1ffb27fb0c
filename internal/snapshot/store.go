package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Folders of a store. Objects in the first three never change and are named by
// their content. Chunks and layers may be kept by a cache before the backend
// (see Cacheable); manifests not, for one that was deleted is to be gone.
const (
	chunkDir    = "chunks/"
	layerDir    = "layers/"
	manifestDir = "manifests/"
	leaseDir    = "leases/"
	useDir      = "uses/"
)

func chunkName(d Digest) string { return chunkDir + d.Hex() }
func layerName(d Digest) string { return layerDir + d.Hex() }
func manifestName(id ID) string { return manifestDir + id.Hex() }

// Options of a store. The zero value means the defaults that the fields name.
type Options struct {
	// Workers is how many chunks are worked on at the same time in one call;
	// default: the number of CPUs, at least 4, for most of the time is waiting.
	Workers int
	// CacheBytes bounds the plain chunks that one open layer keeps in memory;
	// default 64 MiB.
	CacheBytes int64
	// LeaseTTL is how long what a dead process held stays protected, and must
	// be far above the difference between the clocks of a store's users;
	// default 10 minutes.
	LeaseTTL time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Log hears of what went wrong without harm; default slog.Default.
	Log *slog.Logger

	maxOpen int64 // less than the constant in tests
}

// Store keeps snapshots in a backend. Any number of processes may use one
// backend at the same time. All methods are safe for concurrent use.
type Store struct {
	b     backend.Backend
	cache *backend.Cached // what b is or, for Verify, was; nil without
	opts  Options

	mu      sync.Mutex
	touched map[ID]time.Time
	depths  map[Digest]int
}

// New makes a store over b. If b is a *backend.Cached, Verify reads beneath it.
func New(b backend.Backend, opts Options) *Store {
	if opts.Workers <= 0 {
		opts.Workers = max(4, runtime.GOMAXPROCS(0))
	}
	if opts.CacheBytes <= 0 {
		opts.CacheBytes = 64 << 20
	}
	if opts.LeaseTTL <= 0 {
		opts.LeaseTTL = 10 * time.Minute
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.maxOpen <= 0 {
		opts.maxOpen = maxOpen
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	cache, _ := b.(*backend.Cached)
	return &Store{b: b, cache: cache, opts: opts, touched: map[ID]time.Time{}, depths: map[Digest]int{}}
}

// direct is the store without its cache: what Verify finds whole is whole in
// the backend, not only on this machine.
func (s *Store) direct() *Store {
	if s.cache == nil {
		return s
	}
	return &Store{b: s.cache.Beneath(), cache: s.cache, opts: s.opts, touched: map[ID]time.Time{}, depths: map[Digest]int{}}
}

// seen passes on what reading an object gave. Of a damaged one the cache keeps
// nothing: the backend's may be whole by now.
func (s *Store) seen(name string, err error) error {
	if s.cache != nil && errors.Is(err, ErrDamaged) {
		s.cache.Forget(name)
	}
	return err
}

// read gets a whole object; that it is not there, or shorter than the backend
// says, is damage.
func (s *Store) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := backend.ReadAll(ctx, s.b, name, limit)
	return data, damageOf(name, err)
}

func damageOf(name string, err error) error {
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return &DamageError{Object: name, Kind: Missing, Err: err}
	case errors.Is(err, backend.ErrSize):
		return &DamageError{Object: name, Kind: Corrupt, Reason: "too large", Err: err}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, backend.ErrRange):
		return &DamageError{Object: name, Kind: Truncated, Err: err}
	}
	return err
}

// put stores an object whose name stands for its content.
func (s *Store) put(ctx context.Context, name string, data []byte) error {
	err := s.b.Put(ctx, name, bytes.NewReader(data), int64(len(data)))
	if err != nil && !errors.Is(err, backend.ErrExist) {
		return fmt.Errorf("storing %s: %w", name, err)
	}
	return nil
}

func (s *Store) readManifest(ctx context.Context, id ID) (*Manifest, error) {
	data, err := s.read(ctx, manifestName(id), MaxManifest)
	m, _, err := checkManifest(id, data, err)
	return m, err
}

// checkManifest makes a manifest of what was read, and also gives the text of
// a foreign one.
func checkManifest(id ID, data []byte, err error) (*Manifest, []byte, error) {
	name := manifestName(id)
	if errors.Is(err, backend.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return nil, nil, err
	}
	if DigestOf(data) != id {
		return nil, nil, &DamageError{Object: name, Kind: Corrupt, Reason: "its content has another digest"}
	}
	m, err := DecodeManifest(data)
	if err != nil {
		return nil, data, &DamageError{Object: name, Kind: Foreign, Err: err}
	}
	return m, nil, nil
}

func (s *Store) readIndex(ctx context.Context, d Digest) (*index, error) {
	ix, err := s.getIndex(ctx, d)
	return ix, s.seen(layerName(d), err)
}

func (s *Store) getIndex(ctx context.Context, d Digest) (*index, error) {
	name := layerName(d)
	data, err := s.read(ctx, name, maxIndex)
	if err != nil {
		return nil, err
	}
	if DigestOf(data) != d {
		// A shorter copy of the right thing says so itself.
		if _, err := decodeIndex(data); errors.Is(err, errShort) {
			return nil, &DamageError{Object: name, Kind: Truncated, Err: err}
		}
		return nil, &DamageError{Object: name, Kind: Corrupt, Reason: "its content has another digest"}
	}
	ix, err := decodeIndex(data)
	if err != nil {
		return nil, &DamageError{Object: name, Kind: Foreign, Err: err}
	}
	return ix, nil
}

const (
	// maxDepth bounds chains of layers and of snapshots.
	maxDepth = 256
	// maxOpen bounds the bytes that the tables of an open layer and its
	// ancestors take: an image of 4 TiB in a base and a difference fits.
	maxOpen = 1 << 30
)

// readChain reads a layer's index and those of its ancestors, the layer first.
func (s *Store) readChain(ctx context.Context, d Digest) ([]*index, error) {
	var chain []*index
	var bytes int64
	for top := d; !d.IsZero(); {
		if len(chain) == maxDepth {
			return nil, fmt.Errorf("layer has more than %d ancestors: compact its snapshot (skep snapshot compact)", maxDepth)
		}
		ix, err := s.readIndex(ctx, d)
		if err != nil {
			return nil, err
		}
		if len(chain) > 0 && (ix.pageSize != chain[0].pageSize || ix.chunkPages != chain[0].chunkPages) {
			return nil, &DamageError{Object: layerName(d), Kind: Foreign, Reason: "its pages or chunks have another size than its child's"}
		}
		chain = append(chain, ix)
		// And what OpenLayer makes of it.
		if bytes += ix.memory() + int64(chain[0].chunks())*8; bytes > s.opts.maxOpen {
			return nil, fmt.Errorf("the tables of layer %s and its first %d ancestors take more than the %d bytes that are allowed", top, len(chain)-1, s.opts.maxOpen)
		}
		d = ix.parent
	}
	return chain, nil
}

// Depth is the number of layers in a layer's chain, 1 for a base.
func (s *Store) Depth(ctx context.Context, d Digest) (int, error) {
	s.mu.Lock()
	depth, ok := s.depths[d]
	s.mu.Unlock()
	if ok {
		return depth, nil
	}
	chain, err := s.readChain(ctx, d)
	if err != nil {
		return 0, fmt.Errorf("depth of layer %s: %w", d, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.depths) > 10_000 {
		clear(s.depths) // read again where needed
	}
	s.depths[d] = len(chain)
	return len(chain), nil
}

// Volatile tells whether an object may be lost in a power failure without
// harm, so that a local backend need not sync it (local.Options.Volatile).
func Volatile(object string) bool {
	return strings.HasPrefix(object, leaseDir) || strings.HasPrefix(object, useDir)
}

// Cacheable tells whether an object's content can never change, so that a
// cache may keep it (backend.CacheOptions.Match).
func Cacheable(object string) bool {
	return strings.HasPrefix(object, chunkDir) || strings.HasPrefix(object, layerDir)
}
