package build

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fileLayer is a layer whose compressed tar is a file and whose digests are
// known, so that using a base again costs no compression and no hashing.
type fileLayer struct {
	path  string
	facts layerFacts
	// file, if set, is read instead of path: a base that a refresh replaces
	// meanwhile stays readable for the image built on it.
	file *os.File
}

// layerFacts describe a layer's file.
type layerFacts struct {
	Digest           v1.Hash `json:"digest"`
	DiffID           v1.Hash `json:"diffID"`
	Size             int64   `json:"size"`             // bytes, compressed
	UncompressedSize int64   `json:"uncompressedSize"` // bytes
}

func (l *fileLayer) Digest() (v1.Hash, error)            { return l.facts.Digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)            { return l.facts.DiffID, nil }
func (l *fileLayer) Size() (int64, error)                { return l.facts.Size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l *fileLayer) UncompressedSize() (int64, error)    { return l.facts.UncompressedSize, nil }
func (l *fileLayer) Exists() (bool, error)               { return true, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error) {
	if l.file != nil {
		return io.NopCloser(io.NewSectionReader(l.file, 0, l.facts.Size)), nil
	}
	return os.Open(l.path)
}

func (l *fileLayer) Uncompressed() (io.ReadCloser, error) {
	c, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bufio.NewReaderSize(c, 1<<16))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("layer %s: %w", l.path, err), c.Close())
	}
	return &gzipFile{z, c}, nil
}

func (l *fileLayer) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

func closeLayers(ls []*fileLayer) error {
	var errs []error
	for _, l := range ls {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

type gzipFile struct {
	*gzip.Reader
	file io.Closer
}

func (g *gzipFile) Close() error { return errors.Join(g.Reader.Close(), g.file.Close()) }

// owned are the paths in a layer that do not belong to root.
var owned = map[string]int{"home/nonroot": UserID}

// packTree writes the folder root as a layer to the file out. Everything that
// differs from machine to machine or run to run is levelled: order, owner (root,
// but see owned), times (epoch), set-user-ID bits and extended attributes (none).
func packTree(ctx context.Context, root, out string, epoch time.Time) (_ *fileLayer, err error) {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write layer: %w", cerr)
		}
	}()
	compressed := &measure{w: f, h: sha256.New()}
	z, err := gzip.NewWriterLevel(compressed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	plain := &measure{w: z, h: sha256.New()}
	p := &packer{ctx: ctx, root: root, tw: tar.NewWriter(plain), epoch: epoch, seen: map[inode]string{}}
	if err := filepath.WalkDir(root, p.visit); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if err := errors.Join(p.tw.Close(), z.Close()); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return &fileLayer{path: out, facts: layerFacts{
		Digest: compressed.hash(), Size: compressed.n, DiffID: plain.hash(), UncompressedSize: plain.n,
	}}, nil
}

type inode struct{ dev, ino uint64 }

type packer struct {
	ctx   context.Context
	root  string
	tw    *tar.Writer
	epoch time.Time
	seen  map[inode]string // first name of files with several
}

func (p *packer) visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if err := p.ctx.Err(); err != nil {
		return err
	}
	name, err := filepath.Rel(p.root, path)
	if err != nil || name == "." {
		return err
	}
	st, err := d.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name: name, ModTime: p.epoch, Format: tar.FormatPAX,
		Mode: int64(st.Mode().Perm()), Uid: owned[name], Gid: owned[name],
	}
	if st.Mode()&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch st.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case fs.ModeSymlink:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, st.Size()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
			id := inode{uint64(sys.Dev), sys.Ino} //nolint:unconvert // other machines have 32 bits here
			if first, ok := p.seen[id]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			} else {
				p.seen[id] = name
			}
		}
	default:
		return fmt.Errorf("%s is a %s: only files, folders and symbolic links can be in an image", name, st.Mode().Type())
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(p.tw, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// measure hashes and counts what passes.
type measure struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (m *measure) Write(b []byte) (int, error) {
	n, err := m.w.Write(b)
	m.h.Write(b[:n])
	m.n += int64(n)
	return n, err
}

func (m *measure) hash() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(m.h.Sum(nil))}
}

// epoch0 is the time of the files of bases, which are shared by builds of any
// SOURCE_DATE_EPOCH.
var epoch0 = time.Unix(0, 0).UTC()
