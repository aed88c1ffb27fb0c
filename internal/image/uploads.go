package image

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// uploads are blobs that clients are sending to the registry endpoint.
type uploads struct {
	mu   sync.Mutex
	byID map[string]*upload
}

const uploadIdle = 10 * time.Minute // after which an upload is dropped

type upload struct {
	id   string
	mu   sync.Mutex // held while a request uses the upload
	file *os.File
	sum  hash.Hash
	size int64
	gone bool

	used time.Time // guarded by uploads.mu
}

var (
	errTooManyUploads = errors.New("too many unfinished uploads: finish or cancel some")
	errNoUpload       = errors.New("no such upload: start again")
)

func (s *Store) startUpload() (*upload, error) {
	u := &s.uploads
	u.removeIdle()
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.stop.Err() != nil {
		return nil, ErrClosed
	}
	if len(u.byID) >= s.cfg.MaxUploads {
		return nil, errTooManyUploads
	}
	f, err := s.tempFile()
	if err != nil {
		return nil, err
	}
	up := &upload{id: rand.Text(), file: f, sum: sha256.New(), used: time.Now()}
	u.byID[up.id] = up
	return up, nil
}

// take locks an upload for one request.
func (u *uploads) take(id string) (*upload, error) {
	u.mu.Lock()
	up := u.byID[id]
	if up != nil {
		up.used = time.Now()
	}
	u.mu.Unlock()
	if up == nil {
		return nil, errNoUpload
	}
	if !up.mu.TryLock() {
		return nil, fmt.Errorf("%w: another request is writing to it", ErrInUse)
	}
	if up.gone {
		up.mu.Unlock()
		return nil, errNoUpload
	}
	return up, nil
}

// give ends a request's use of an upload.
func (u *uploads) give(up *upload) {
	u.mu.Lock()
	up.used = time.Now()
	if up.gone {
		delete(u.byID, up.id)
	}
	u.mu.Unlock()
	up.mu.Unlock()
}

// removeIdle drops uploads that their clients have given up.
func (u *uploads) removeIdle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, up := range u.byID {
		if time.Since(up.used) > uploadIdle && up.mu.TryLock() {
			up.drop()
			up.mu.Unlock()
			delete(u.byID, id)
		}
	}
}

func (u *uploads) removeAll() {
	u.mu.Lock()
	all := u.byID
	u.byID = map[string]*upload{}
	u.mu.Unlock()
	for _, up := range all {
		up.mu.Lock()
		up.drop()
		up.mu.Unlock()
	}
}

// drop removes what was sent so far. up.mu is held.
func (up *upload) drop() {
	up.gone = true
	discard(up.file)
}

// append adds the bytes of r. An upload that fails half-way stays at what it
// has; the client asks where that is.
func (s *Store) appendUpload(up *upload, r io.Reader) error {
	limit := s.cfg.MaxImageBytes - up.size
	w := &progressWriter{w: io.MultiWriter(io.NewOffsetWriter(up.file, up.size), up.sum), done: &up.size, report: func(Progress) {}}
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	switch {
	case w.err != nil: // file and hash may disagree now
		up.drop()
		return s.ioError(fmt.Errorf("writing upload: %w", w.err))
	case err == nil && n > limit:
		up.drop()
		return fmt.Errorf("%w: a blob of more than %d bytes", ErrTooLarge, s.cfg.MaxImageBytes)
	}
	return err
}

// finishUpload makes an upload a blob, on disk when this returns.
func (s *Store) finishUpload(up *upload, want v1.Hash) error {
	if err := checkDigest(want); err != nil {
		return err
	}
	defer up.drop()
	if got := hex.EncodeToString(up.sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: sent was sha256:%s, announced %s", ErrCorrupt, got, want)
	}
	s.noteRecent(want)
	if s.hasBlob(want) {
		return nil
	}
	return s.commit(up.file, "blobs", "sha256", want.Hex)
}

// noteRecent keeps GC away from a blob whose manifest is still to come.
func (s *Store) noteRecent(h v1.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent[h.Hex] = time.Now()
}

// hasBlobForPush is hasBlob for a client that will not send what is there.
func (s *Store) hasBlobForPush(h v1.Hash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hasBlob(h) {
		return false
	}
	s.recent[h.Hex] = time.Now()
	return true
}
