package gvisor

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"

	"github.com/skep-dev/skep/internal/sandbox"
)

// openTestPages opens a file of n random bytes, and a file to read to.
func openTestPages(t *testing.T, n int) (_ *pageReader, content []byte, dst int, path string) {
	t.Helper()
	dir := t.TempDir()
	content = make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	path = filepath.Join(dir, sandbox.FileState)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &pageServer{dirs: []string{dir}}
	ar, err := s.OpenRead(checkpointfiles.StateFileName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ar.Close(); err != nil {
			t.Error(err)
		}
		s.wait() // returns: all is closed
	})
	if dst, err = unix.MemfdCreate("pages", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dst) })
	return ar.(*pageReader), content, dst, path
}

func TestPages(t *testing.T) {
	const page = 4096
	r, content, dst, _ := openTestPages(t, 64*page+100)
	df, err := r.RegisterDestinationFD(int32(dst), 1<<30, nil)
	if err != nil {
		t.Fatal(err)
	}
	fr := func(start, end uint64) memmap.FileRange {
		return memmap.FileRange{Start: start * page, End: end * page}
	}
	r.AddRead(3, 0, df, fr(10, 20), nil)
	r.AddReadv(5, 10*page, 6*page, df, []memmap.FileRange{fr(1, 4), fr(40, 43)}, nil)
	r.AddRead(0, 64*page, df, fr(60, 61), nil) // runs over the end
	r.AddRead(1, 65*page, df, fr(70, 71), nil) // lies beyond
	cs, err := r.Wait(nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]stateio.Completion{}
	for _, c := range cs {
		got[c.ID] = c
	}
	for id, want := range map[int]stateio.Completion{
		3: {ID: 3, N: 10 * page}, 5: {ID: 5, N: 6 * page},
		0: {ID: 0, N: 100, Err: io.EOF}, 1: {ID: 1, Err: io.EOF},
	} {
		if c := got[id]; c.N != want.N || !errors.Is(c.Err, want.Err) {
			t.Errorf("read %d: %+v, want %+v", id, c, want)
		}
	}
	check := func(start, end uint64, want []byte) {
		t.Helper()
		b := make([]byte, (end-start)*page)
		if n, err := unix.Pread(dst, b, int64(start)*page); err != nil || n != len(b) || !bytes.Equal(b, want) {
			t.Errorf("pages %d to %d are wrong: %d bytes, %v", start, end, n, err)
		}
	}
	check(10, 20, content[:10*page])
	check(1, 4, content[10*page:13*page])
	check(40, 43, content[13*page:16*page])
	if cs, err := r.Wait(nil, 0); err != nil || len(cs) > 0 {
		t.Errorf("nothing to wait for: %v, %v", cs, err)
	}
}

// TestPagesTruncated has the file become shorter while it is mapped.
func TestPagesTruncated(t *testing.T) {
	r, _, dst, path := openTestPages(t, 1<<20)
	df, err := r.RegisterDestinationFD(int32(dst), 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	r.AddRead(0, 512<<10, df, memmap.FileRange{Start: 0, End: 256 << 10}, nil)
	cs, err := r.Wait(nil, 1)
	if err != nil || len(cs) != 1 || cs[0].N != 0 || !errors.Is(cs[0].Err, unix.EFAULT) {
		t.Errorf("%+v, %v; want EFAULT", cs, err)
	}
}

func TestPagesRefused(t *testing.T) {
	s := &pageServer{dirs: []string{t.TempDir()}}
	for _, name := range []string{"", "../state", "memory", checkpointfiles.StateFileName} {
		if _, err := s.OpenRead(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("OpenRead(%q): %v", name, err)
		}
	}
	if _, err := s.OpenWrite(checkpointfiles.StateFileName); !errors.Is(err, unix.EROFS) {
		t.Errorf("OpenWrite: %v", err)
	}
}
