package erofs

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// layoutState assigns positions to inodes.
type layoutState struct {
	xattrs bool
	meta   int64 // bytes of metadata so far
	data   int64 // offset of the next block for directories and long symlinks
	order  []*inode
	has    bool // some inode has extended attributes
}

// writeMeta writes directories, inodes and superblock behind the file data.
func (b *Builder) writeMeta(ctx context.Context, out *output, xattrs bool) (Result, error) {
	l := layoutState{xattrs: xattrs, meta: rootNid * nidSize, data: out.offset}
	seen := make(map[*inode]bool) // hard links only
	l.place(b.tree.root)
	l.layOut(b.tree.root, seen)

	var scratch []byte
	for i, n := range l.order {
		if i%1024 == 0 && ctx.Err() != nil {
			return Result{}, context.Cause(ctx)
		}
		if n.dataLength == 0 || n.inline {
			continue
		}
		scratch = appendContent(scratch[:0], n)
		if _, err := out.Write(scratch); err != nil {
			return Result{}, err
		}
		if err := out.pad(BlockSize); err != nil {
			return Result{}, err
		}
	}
	metaStart := out.offset
	if metaStart/BlockSize > math.MaxUint32 {
		return Result{}, fmt.Errorf("%w: more than 16 TiB", ErrLimit)
	}
	for i, n := range l.order {
		if i%1024 == 0 && ctx.Err() != nil {
			return Result{}, context.Cause(ctx)
		}
		gap := metaStart + int64(n.nid)*nidSize - out.offset
		if gap < 0 || gap > BlockSize {
			return Result{}, fmt.Errorf("internal error: gap of %d bytes before inode %d", gap, n.nid)
		}
		if _, err := out.Write(zeros[:gap]); err != nil {
			return Result{}, err
		}
		scratch = appendInode(scratch[:0], n, i)
		if _, err := out.Write(scratch); err != nil {
			return Result{}, err
		}
	}
	if err := out.pad(BlockSize); err != nil {
		return Result{}, err
	}
	if err := out.flush(); err != nil {
		return Result{}, err
	}
	size := out.offset
	sb := superblock{inodes: uint64(len(l.order)), blocks: uint32(size / BlockSize), metaBlock: uint32(metaStart / BlockSize), uuid: b.uuid}
	if _, err := out.file.WriteAt(sb.encode(), 0); err != nil {
		return Result{}, fmt.Errorf("writing superblock: %w", err)
	}
	return Result{Size: size, Inodes: int64(len(l.order)), HasXattrs: l.has}, nil
}

// layOut places the entries of a directory together, then goes into its
// subdirectories.
func (l *layoutState) layOut(dir *inode, seen map[*inode]bool) {
	for _, d := range dir.dir.sorted {
		n := d.inode
		if !n.isDir() && n.nlink > 1 {
			if seen[n] {
				continue
			}
			seen[n] = true
		}
		l.place(n)
	}
	for _, d := range dir.dir.sorted {
		if d.inode.isDir() {
			l.layOut(d.inode, seen)
		}
	}
}

// place decides where an inode goes and what follows it inline.
func (l *layoutState) place(n *inode) {
	l.has = l.has || len(n.xattrs) > 0
	n.xattrSize = 0
	if l.xattrs {
		n.xattrSize = xattrAreaSize(n.xattrs)
	}
	switch {
	case n.isDir():
		n.dir.sorted = sortEntries(n)
		n.dataLength = int64(direntsLength(n))
	default:
		n.dataLength = int64(len(n.target))
	}
	// The inode itself must not cross a block, and what is inline must be in
	// the inode's own block: the kernel refuses anything else for symlinks.
	head := int64(inodeSize + n.xattrSize)
	room := BlockSize - l.meta%BlockSize
	n.inline = n.dataLength > 0 && n.dataLength < BlockSize && head+n.dataLength <= BlockSize
	switch {
	case n.inline && head+n.dataLength <= room:
	case n.inline && n.dataLength <= BlockSize/4, room < inodeSize:
		l.meta = align(l.meta, BlockSize)
	default:
		n.inline = false
	}
	n.nid = uint64(l.meta / nidSize)
	l.meta += head
	switch {
	case n.inline:
		l.meta += n.dataLength
	case n.dataLength > 0:
		n.dataBlock = uint32(l.data / BlockSize)
		l.data += align(n.dataLength, BlockSize)
	}
	l.meta = align(l.meta, nidSize)
	l.order = append(l.order, n)
}

func appendInode(b []byte, n *inode, number int) []byte {
	layout, raw, size := uint16(layoutPlain), uint32(0), n.size
	switch n.mode & modeType {
	case modeReg:
		raw = n.block
	case modeChar, modeBlk:
		raw = n.rdev
	case modeDir, modeLink:
		size = n.dataLength
		if raw = n.dataBlock; n.inline {
			layout, raw = layoutInline, 0
		}
	}
	b = append(b, zeros[:inodeSize]...)
	putInode(b, n, layout, n.xattrSize, uint64(size), raw, uint32(number+1))
	if n.xattrSize > 0 {
		b = appendXattrs(b, n.xattrs)
	}
	if n.inline {
		b = appendContent(b, n)
	}
	return b
}

func appendContent(b []byte, n *inode) []byte {
	if n.isDir() {
		return appendDirents(b, n)
	}
	return append(b, n.target...)
}

// sortEntries returns all entries of a directory, "." and ".." included, in
// the order of their bytes, which readers search by bisection.
func sortEntries(n *inode) []*dentry {
	all := make([]*dentry, 0, len(n.dir.entries)+2)
	for _, d := range n.dir.entries {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *dentry) int { return strings.Compare(a.name, b.name) })
	return all
}

// withDots yields a directory's names in order, with "." and "..".
func withDots(n *inode) []*dentry {
	dots := []*dentry{{name: ".", inode: n}, {name: "..", inode: n.dir.parent}}
	all := make([]*dentry, 0, len(n.dir.sorted)+2)
	for _, d := range n.dir.sorted {
		for len(dots) > 0 && dots[0].name < d.name {
			all = append(all, dots[0])
			dots = dots[1:]
		}
		all = append(all, d)
	}
	return append(all, dots...)
}

// nextBlock says how many of the entries fit in one directory block, and the
// bytes they take.
func nextBlock(all []*dentry) (count, length int) {
	for _, d := range all {
		n := direntSize + len(d.name)
		if length+n > BlockSize {
			break
		}
		length += n
		count++
	}
	return count, length
}

func direntsLength(n *inode) int {
	total := 0
	for all := withDots(n); len(all) > 0; {
		count, length := nextBlock(all)
		if all = all[count:]; len(all) > 0 {
			length = BlockSize
		}
		total += length
	}
	return total
}

func appendDirents(b []byte, n *inode) []byte {
	for all := withDots(n); len(all) > 0; {
		count, length := nextBlock(all)
		name := count * direntSize
		for _, d := range all[:count] {
			b = binary.LittleEndian.AppendUint64(b, d.inode.nid)
			b = binary.LittleEndian.AppendUint16(b, uint16(name))
			b = append(b, direntType(d.inode.mode), 0)
			name += len(d.name)
		}
		for _, d := range all[:count] {
			b = append(b, d.name...)
		}
		if all = all[count:]; len(all) > 0 {
			b = append(b, zeros[:BlockSize-length]...)
		}
	}
	return b
}
