package gvisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	metadata "gvisor.dev/gvisor/pkg/sentry/pgalloc/pgalloc_metadata_go_proto"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// describe encodes the description of a memory file as gVisor does, with
// something behind it.
func describe(t testing.TB, version uint64, chunks int, ranges ...memmap.FileRange) []byte {
	t.Helper()
	m := &metadata.MemoryFileMetadataProto{Version: version}
	for range chunks {
		m.Chunks = append(m.Chunks, &metadata.ChunkInfoProto{})
	}
	for _, r := range ranges {
		m.MemAcct = append(m.MemAcct, &metadata.MemAcctRangeProto{Start: r.Start, End: r.End, KnownCommitted: true})
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(b))), b...), "of other files"...)
}

func pages(start, end uint64) memmap.FileRange {
	return memmap.FileRange{Start: start * pageBytes, End: end * pageBytes}
}

func TestParseRanges(t *testing.T) {
	want := []memmap.FileRange{pages(1, 3), pages(7, 8)}
	got, size, err := parseRanges(describe(t, 1, 2, want...))
	if err != nil || size != 2*chunkBytes || !slices.Equal(got, want) {
		t.Errorf("%v, %d, %v", got, size, err)
	}
	good := describe(t, 1, 1, pages(0, 1))
	for why, b := range map[string][]byte{
		"version 2":    describe(t, 2, 1),
		"GiB":          describe(t, 1, maxChunks+1),
		"out of order": describe(t, 1, 1, pages(3, 4), pages(1, 2)),
		"outside":      describe(t, 1, 1, memmap.FileRange{Start: 0, End: chunkBytes + pageBytes}),
		"no pages":     describe(t, 1, 1, memmap.FileRange{Start: 0, End: 100}),
		"EOF":          good[:7],
		"unexpected":   good[:12],
		"proto":        append(binary.LittleEndian.AppendUint64(nil, 3), "\xff\xff\xff"...),
	} {
		if _, _, err := parseRanges(b); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

func FuzzRanges(f *testing.F) {
	f.Add(describe(f, 1, 1, pages(0, 1), pages(2, 5)))
	f.Add(describe(f, 1, 0))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ranges, size, err := parseRanges(b)
		if err != nil {
			return
		}
		end := uint64(0)
		for _, r := range ranges {
			if r.Start < end || r.End <= r.Start || int64(r.End) > size || r.Start%pageBytes != 0 || r.End%pageBytes != 0 {
				t.Fatalf("accepted %v after %d in %d bytes", r, end, size)
			}
			end = r.End
		}
	})
}

// layer makes a folder with the memory of a snapshot: of each of the pages of
// saved, which belong to ranges, what base has not.
func layer(t *testing.T, size int64, base []string, saved string, ranges ...memmap.FileRange) string {
	t.Helper()
	dir := t.TempDir()
	from, err := os.CreateTemp(dir, "saved")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for _, c := range []byte(saved) {
		if _, err := from.Write(bytes.Repeat([]byte{c}, pageBytes)); err != nil {
			t.Fatal(err)
		}
	}
	to, err := os.Create(filepath.Join(dir, sandbox.FileMemory))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	var m *memory
	if base != nil {
		if m, err = openMemory(base); err != nil {
			t.Fatal(err)
		}
		defer m.Close()
	}
	n, err := layOut(t.Context(), from, ranges, m, to)
	if err != nil || n != int64(len(saved))*pageBytes {
		t.Fatalf("layOut: %d bytes, %v", n, err)
	}
	if err := to.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return dir
}

// content is a page's letters, from a page on, as a sandbox that is restored
// gets them.
func content(t *testing.T, dirs []string, first, n uint64) string {
	t.Helper()
	s := &pageServer{dirs: dirs}
	r, err := s.OpenRead(checkpointfiles.PagesFileName)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	df, err := r.RegisterDestinationFD(int32(fd), 1<<30, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddRead(0, 12345, df, pages(first, first+n), nil) // in the packed file, that is
	cs, err := r.Wait(nil, 1)
	if err != nil || len(cs) != 1 {
		t.Fatalf("%v, %v", cs, err)
	}
	var out []byte
	b := make([]byte, pageBytes)
	for i := range cs[0].N / pageBytes {
		if _, err := unix.Pread(fd, b, int64(first+i)*pageBytes); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, bytes.Repeat(b[:1], pageBytes)) {
			t.Errorf("page %d is mixed", first+i)
		}
		out = append(out, b[0])
	}
	return string(out)
}

func TestLayers(t *testing.T) {
	const size = 64 * pageBytes
	base := layer(t, size, nil, "abcdefg", pages(2, 6), pages(10, 13))
	one := layer(t, size, []string{base}, "abXdef", pages(2, 6), pages(10, 12))
	two := layer(t, 2*size, []string{one, base}, "YbXdefZz", pages(2, 6), pages(10, 12), pages(20, 21), pages(70, 71))
	for _, test := range []struct {
		dirs     []string
		first, n uint64
		want     string
	}{
		{[]string{base}, 2, 4, "abcd"}, {[]string{base}, 10, 3, "efg"},
		{[]string{one, base}, 2, 4, "abXd"}, {[]string{one, base}, 10, 2, "ef"},
		{[]string{two, one, base}, 2, 4, "YbXd"}, {[]string{two, one, base}, 20, 1, "Z"},
		{[]string{two, one, base}, 70, 1, "z"},
		{[]string{two, one, base}, 71, 1, ""}, // nobody has it
	} {
		if got := content(t, test.dirs, test.first, test.n); got != test.want {
			t.Errorf("%d layers, page %d: %q, want %q", len(test.dirs), test.first, got, test.want)
		}
	}
	for dir, want := range map[string]int64{one: 1, two: 3} {
		f, err := os.Open(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l, err := pager.SparseLayer(f)
		var n int64
		for _, e := range l.Extents {
			n += e.Length / pageBytes
		}
		if err != nil || n != want {
			t.Errorf("a difference has %d pages, want %d, %v", n, want, err)
		}
	}
	// A difference alone is not enough, but once it is filled up it is.
	x := &index{Pages: 3 * pageBytes, Base: "base"}
	if err := checkAlone(one, x); err == nil || !strings.Contains(err.Error(), "is a difference") {
		t.Errorf("a difference alone: %v", err)
	}
	if err := checkAlone(two, x); err != nil {
		t.Error(err)
	}
}

func TestLayOutRefuses(t *testing.T) {
	dir := t.TempDir()
	open := func(name string, n int64) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			err = f.Truncate(n)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	saved, to := open("saved", 3*pageBytes), open("to", 0)
	if _, err := layOut(t.Context(), saved, []memmap.FileRange{pages(0, 4)}, nil, to); err == nil {
		t.Error("too few pages: no error")
	}
	if _, err := layOut(t.Context(), saved, []memmap.FileRange{pages(0, 2)}, nil, to); err == nil || !strings.Contains(err.Error(), "12288") {
		t.Errorf("too many pages: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := layOut(ctx, saved, []memmap.FileRange{pages(0, 3)}, nil, to); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
