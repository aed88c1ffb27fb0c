package erofs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
)

// Options of a Builder.
type Options struct {
	Limits Limits
	// UUID of the file system.
	UUID [16]byte
}

// Builder flattens layers into one image. Call AddLayer for each layer from
// the lowest up, then Finish. After an error the output is garbage.
// It is not safe for concurrent use.
type Builder struct {
	out  *output
	tree *tree
	uuid [16]byte
	dead []extent
}

// Result describes a finished image.
type Result struct {
	Size   int64 // of the output file, in bytes; holes make it smaller on disk
	Inodes int64
	// HasXattrs: some file has extended attributes, see Builder.WriteStripped.
	HasXattrs bool
}

// NewBuilder returns a Builder that writes to the empty file out. The caller
// keeps out and syncs it.
func NewBuilder(out *os.File, o Options) *Builder {
	b := &Builder{out: newOutput(out), uuid: o.UUID}
	root := newDir(nil, 0)
	root.nlink = 2
	b.tree = &tree{root: root, use: usage{Limits: o.Limits.withDefaults()}, freed: b.free}
	return b
}

func (b *Builder) free(n *inode) {
	b.dead = append(b.dead, extent{start: int64(n.block) * BlockSize, length: align(n.size, BlockSize)})
}

// AddLayer applies an uncompressed tar stream on top of the layers so far.
// It reads r up to the archive's end, not to the end of r.
func (b *Builder) AddLayer(ctx context.Context, r io.Reader) error {
	b.tree.layer++
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if n%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return b.readError(fmt.Errorf("layer %d: reading entry %d: %w", b.tree.layer, n+1, err))
		}
		if err := b.addEntry(ctx, h, tr); err != nil {
			return fmt.Errorf("layer %d: entry %.200q: %w", b.tree.layer, h.Name, err)
		}
	}
}

// readError marks errors of the archive as such, and leaves those of its source.
func (b *Builder) readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, tar.ErrInsecurePath) {
		return fmt.Errorf("%w: %w", ErrBadLayer, err)
	}
	return err
}

const whiteoutPrefix = ".wh."

func (b *Builder) addEntry(ctx context.Context, h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	t := b.tree
	if err := t.use.addFile(); err != nil {
		return err
	}
	parts, err := splitPath(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the image's root is not a directory (tar type %q)", ErrBadLayer, h.Typeflag)
		}
		return b.setAttributes(t.root, h)
	}
	name := parts[len(parts)-1]
	if strings.HasPrefix(name, whiteoutPrefix) {
		return b.addWhiteout(parts[:len(parts)-1], name)
	}
	dir, err := t.resolve(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	old := dir.dir.entries[name]
	switch h.Typeflag {
	case tar.TypeDir:
		if old != nil && old.inode.isDir() {
			old.layer = t.layer
			t.touch(old.inode)
			return b.setAttributes(old.inode, h)
		}
		n := newDir(dir, t.layer)
		if err := b.setAttributes(n, h); err != nil {
			return err
		}
		return t.link(dir, name, n)
	case tar.TypeLink:
		return b.addHardLink(dir, name, h)
	}
	n := &inode{}
	if err := b.setAttributes(n, h); err != nil {
		return err
	}
	if n.mode&modeType == modeReg && h.Size > 0 {
		if err := b.addData(ctx, n, h, data); err != nil {
			return err
		}
	}
	return t.link(dir, name, n)
}

func (b *Builder) addData(ctx context.Context, n *inode, h *tar.Header, data io.Reader) error {
	if err := b.tree.use.addBytes(h.Size); err != nil {
		return err
	}
	start, err := b.out.copyFile(ctx, data, h.Size)
	if err != nil {
		return b.readError(err)
	}
	if start/BlockSize > math.MaxUint32 {
		return fmt.Errorf("%w: more than 16 TiB", ErrLimit)
	}
	n.size, n.block = h.Size, uint32(start/BlockSize)
	return nil
}

func (b *Builder) addWhiteout(parent []string, name string) error {
	target := name[len(whiteoutPrefix):]
	if target == "" || target == "." || target == ".." {
		return fmt.Errorf("%w: whiteout %q names nothing", ErrBadLayer, name)
	}
	dir, err := b.tree.resolve(parent, false)
	if err != nil || dir == nil {
		return err
	}
	switch {
	case name == ".wh..wh..opq":
		b.tree.opaque(dir)
	case strings.HasPrefix(target, whiteoutPrefix):
		// AUFS' own bookkeeping (.wh..wh.plnk and the like): no content.
	default:
		b.tree.whiteout(dir, target)
	}
	return nil
}

func (b *Builder) addHardLink(dir *inode, name string, h *tar.Header) error {
	parts, err := splitPath(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link's target: %w", err)
	}
	if len(parts) == 0 {
		return fmt.Errorf("%w: hard link to the root directory", ErrBadLayer)
	}
	from, err := b.tree.resolve(parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("hard link's target: %w", err)
	}
	var target *dentry
	if from != nil {
		target = from.dir.entries[parts[len(parts)-1]]
	}
	switch {
	case target == nil:
		return fmt.Errorf("%w: hard link to %.200q, which is not in this or an earlier layer", ErrBadLayer, h.Linkname)
	case target.inode.isDir():
		return fmt.Errorf("%w: hard link to directory %.200q", ErrBadLayer, h.Linkname)
	case dir.dir.entries[name] != nil && dir.dir.entries[name].inode == target.inode:
		dir.dir.entries[name].layer = b.tree.layer
		b.tree.touch(dir)
		return nil
	}
	return b.tree.link(dir, name, target.inode)
}

// setAttributes gives n what the header says, except its content.
func (b *Builder) setAttributes(n *inode, h *tar.Header) error {
	var typ uint16
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		typ = modeReg
	case tar.TypeDir:
		typ = modeDir
	case tar.TypeSymlink:
		typ = modeLink
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return fmt.Errorf("%w: symlink target of %d bytes", ErrBadLayer, len(h.Linkname))
		}
		if err := b.tree.use.addMeta(len(h.Linkname)); err != nil {
			return err
		}
		n.target = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		typ = modeChar
		if h.Typeflag == tar.TypeBlock {
			typ = modeBlk
		}
		if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
			return fmt.Errorf("%w: device number %d:%d", ErrBadLayer, h.Devmajor, h.Devminor)
		}
		major, minor := uint32(h.Devmajor), uint32(h.Devminor)
		n.rdev = minor&0xff | major<<8 | minor&^0xff<<12
	case tar.TypeFifo:
		typ = modeFifo
	default:
		return fmt.Errorf("%w: tar type %q cannot be in an image", ErrBadLayer, h.Typeflag)
	}
	if h.Uid < 0 || int64(h.Uid) > math.MaxUint32-1 || h.Gid < 0 || int64(h.Gid) > math.MaxUint32-1 {
		return fmt.Errorf("%w: owner %d:%d is not a user and group id", ErrBadLayer, h.Uid, h.Gid)
	}
	xattrs, err := parseXattrs(h.PAXRecords, b.tree.use.XattrBytes)
	if err != nil {
		return err
	}
	for _, x := range xattrs {
		if err := b.tree.use.addMeta(len(x.name) + len(x.value) + 40); err != nil {
			return err
		}
	}
	n.mode = typ | uint16(h.Mode&0o7777)
	n.uid, n.gid = uint32(h.Uid), uint32(h.Gid)
	n.mtime, n.mtimeNsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	n.xattrs = xattrs
	return nil
}

// Finish writes what remains and returns what was built.
func (b *Builder) Finish(ctx context.Context) (Result, error) {
	if err := b.out.flush(); err != nil {
		return Result{}, err
	}
	if err := b.out.punch(ctx, b.dead); err != nil {
		return Result{}, err
	}
	b.out.dataEnd = b.out.offset
	return b.writeMeta(ctx, b.out, true)
}

// WriteStripped writes the image again to the empty file dst, without
// extended attributes. Call it after Finish.
func (b *Builder) WriteStripped(ctx context.Context, dst *os.File) (Result, error) {
	out, err := b.out.copyData(ctx, dst)
	if err != nil {
		return Result{}, err
	}
	return b.writeMeta(ctx, out, false)
}
