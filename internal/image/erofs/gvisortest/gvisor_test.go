// Package gvisortest checks our images with gVisor's reader, apart from the
// other tests because it takes a large part of gVisor to build.
package gvisortest

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/image/erofs"
	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
	gvisor "gvisor.dev/gvisor/pkg/erofs"
)

// TestGVisorReads reads the stripped variant with gVisor's own reader, file
// data as its mmap does, and looks every name up.
func TestGVisorReads(t *testing.T) {
	t.Parallel()
	layers := [][]byte{
		erofstest.Archive(t, erofstest.Everything()...),
		erofstest.Archive(t, erofstest.Whiteout("etc/.wh.passwd"), erofstest.File("new", strings.Repeat("y", 9000))),
	}
	full, err := os.Create(t.TempDir() + "/full")
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	stripped, err := os.Create(t.TempDir() + "/stripped")
	if err != nil {
		t.Fatal(err)
	}
	b := erofs.NewBuilder(full, erofs.Options{})
	for _, l := range layers {
		if err := b.AddLayer(t.Context(), strings.NewReader(string(l))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteStripped(t.Context(), stripped); err != nil {
		t.Fatal(err)
	}
	image, err := gvisor.OpenImage(stripped)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()

	var got []string
	var walk func(path string, nid uint64) error
	walk = func(path string, nid uint64) error {
		n, err := image.Inode(nid)
		if err != nil {
			return fmt.Errorf("inode of %s: %w", path, err)
		}
		switch {
		case n.IsDir():
			if path != "" {
				got = append(got, path)
			}
			return n.IterDirents(func(name string, _ uint8, child uint64) error {
				if found, err := n.Lookup(name); err != nil || found != child {
					return fmt.Errorf("lookup of %q in %q: %d, %w", name, path, found, err)
				}
				if name == "." || name == ".." {
					return nil
				}
				return walk(strings.TrimPrefix(path+"/"+name, "/"), child)
			})
		case n.IsSymlink():
			target, err := n.Readlink()
			if err != nil {
				return fmt.Errorf("readlink of %s: %w", path, err)
			}
			got = append(got, path+"->"+target)
		case n.IsRegular():
			off, err := n.DataOffset()
			if err != nil || off%erofs.BlockSize != 0 {
				return fmt.Errorf("data of %s: offset %d: %w", path, off, err)
			}
			var data []byte
			if n.Size() > 0 {
				if data, err = image.BytesAt(off, (n.Size()+erofs.BlockSize-1)/erofs.BlockSize*erofs.BlockSize); err != nil {
					return fmt.Errorf("data of %s: %w", path, err)
				}
			}
			got = append(got, path+"="+string(data[:n.Size()]))
		default:
			got = append(got, path)
		}
		return nil
	}
	if err := walk("", image.RootNid()); err != nil {
		t.Fatal(err)
	}
	want, err := erofstest.ReadTree(full.Name())
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(got)
	sort.Strings(want)
	if !slices.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("gVisor sees %.200q, want %.200q", got[i], want[i])
			}
		}
		t.Fatalf("gVisor sees %d files, want %d", len(got), len(want))
	}
}
