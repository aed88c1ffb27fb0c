// Package erofstest makes layers for tests, and reads images back with an
// implementation that is not ours.
package erofstest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
)

const blockSize = 4096

// Entry is a tar entry with its content.
type Entry struct {
	tar.Header
	Data string
}

var epoch = time.Unix(1_700_000_000, 123_456_789)

// Dir is a directory.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: epoch}}
}

// File is a regular file.
func File(name, data string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: epoch}, Data: data}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: epoch}}
}

// HardLink is another name of a file.
func HardLink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: epoch}}
}

// Whiteout is an empty file, named .wh.something by the caller.
func Whiteout(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: epoch}}
}

// With returns the entry with a changed header.
func (e Entry) With(change func(*tar.Header)) Entry {
	change(&e.Header)
	return e
}

// Archive returns the entries as a tar stream.
func Archive(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Data))
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("tar header %q: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(e.Data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Everything is a layer with every type of file and awkward sizes.
func Everything() []Entry {
	all := []Entry{
		Dir("./", 0o750),
		Dir("etc/", 0o755),
		File("etc/empty", ""),
		File("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
		File("block", strings.Repeat("b", blockSize)),
		File("block+1", strings.Repeat("c", blockSize+1)),
		File("block-1", strings.Repeat("d", blockSize-1)),
		File("big", strings.Repeat("0123456789abcdef", 3<<16)),
		File("holes", strings.Repeat("\x00", 5<<20)+"end"+strings.Repeat("\x00", 300<<10)),
		File("setuid", "x").With(func(h *tar.Header) { h.Mode = 0o6755; h.Uid = 70000; h.Gid = 1 << 31 }),
		Symlink("short", "etc/passwd"),
		Symlink("dangling", "/nowhere/../x"),
		Symlink("long", strings.Repeat("l/", 2000)+"end"),
		Symlink("middling", strings.Repeat("m", 1500)),
		HardLink("hard1", "etc/passwd"),
		HardLink("etc/hard2", "/hard1"),
		HardLink("hardlink-to-symlink", "./short"),
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: epoch}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 259, Devminor: 70000, ModTime: epoch}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600, ModTime: epoch}},
		Dir("sticky", 0o1777),
		File(strings.Repeat("n", 255), "long name"),
		File("old", "x").With(func(h *tar.Header) { h.ModTime = time.Unix(-5, 0) }),
		File("cap", "x").With(func(h *tar.Header) {
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"SCHILY.xattr.user.a":              "value",
			}
		}),
		Dir("attributes", 0o755).With(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.t": strings.Repeat("v", 2500), "SCHILY.xattr.user.empty": "x"}
		}),
	}
	deep := ""
	for i := range 100 {
		deep += fmt.Sprintf("d%d/", i)
		all = append(all, Dir(deep, 0o755))
	}
	all = append(all, File(deep+"file", "deep"))
	all = append(all, Dir("many/", 0o755))
	for i := range 1500 {
		all = append(all, File(fmt.Sprintf("many/%04d-%s", i*7919%10007, strings.Repeat("x", i%200)), fmt.Sprint(i)))
	}
	all = append(all, File("many/!before-dot", "1"), File("many/-", "2"), File("many/.hidden", "3"), File("many/\xff\xfe", "4"))
	return all
}

// ReadTree reads an image with an independent implementation and returns
// "path" (a directory), "path=content" or "path->target" of all but the root.
func ReadTree(image string) ([]string, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fsys, err := goerofs.Open(f)
	if err != nil {
		return nil, err
	}
	var all []string
	err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		switch {
		case path == ".":
		case d.Type()&fs.ModeSymlink != 0:
			target, err := fsys.(fs.ReadLinkFS).ReadLink(path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			all = append(all, path+"->"+target)
		case d.Type().IsRegular():
			data, err := fs.ReadFile(fsys, path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			all = append(all, path+"="+string(data))
		default:
			all = append(all, path)
		}
		return nil
	})
	return all, err
}
