package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// BlockSize of the images, in bytes. Kernels before 6.3 take no other.
const BlockSize = 4096

const (
	superMagic   = 0xE0F5E1E2
	superOffset  = 1024
	superSize    = 128
	blockBits    = 12
	inodeSize    = 64 // extended form
	nidSize      = 32 // bytes per inode number
	direntSize   = 12
	rootNid      = 2 // not 0: readdir skips entries with inode number 0
	xattrHead    = 12
	xattrEntry   = 4
	maxXattrArea = xattrHead + (1<<16-2)*4

	featureChecksum = 1 // compatible: superblock checksum
	featureMtime    = 2 // compatible: inode times are mtimes

	layoutPlain  = 0
	layoutInline = 2
)

// POSIX file types, as in an inode's mode.
const (
	modeFifo = 0o010000
	modeChar = 0o020000
	modeDir  = 0o040000
	modeBlk  = 0o060000
	modeReg  = 0o100000
	modeLink = 0o120000
	modeType = 0o170000
)

// direntType is the file type as directory entries record it.
func direntType(mode uint16) uint8 {
	switch mode & modeType {
	case modeReg:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlk:
		return 4
	case modeFifo:
		return 5
	case modeLink:
		return 7
	}
	return 0
}

// superblock fills the image's first block.
type superblock struct {
	inodes    uint64
	blocks    uint32
	metaBlock uint32
	uuid      [16]byte
}

func (s *superblock) encode() []byte {
	b := make([]byte, BlockSize)
	p := b[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(p[0:], superMagic)
	le.PutUint32(p[8:], featureChecksum|featureMtime)
	p[12] = blockBits
	le.PutUint16(p[14:], rootNid)
	le.PutUint64(p[16:], s.inodes)
	le.PutUint32(p[36:], s.blocks)
	le.PutUint32(p[40:], s.metaBlock)
	copy(p[48:64], s.uuid[:])
	// The kernel's crc32c starts from all ones and is not inverted at the end.
	le.PutUint32(p[4:], ^crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// putInode encodes the extended form of n into b.
func putInode(b []byte, n *inode, layout uint16, xattrSize int, size uint64, raw, ino uint32) {
	le := binary.LittleEndian
	clear(b[:inodeSize])
	le.PutUint16(b[0:], 1|layout<<1)
	if xattrSize > 0 {
		le.PutUint16(b[2:], uint16((xattrSize-xattrHead)/4+1))
	}
	le.PutUint16(b[4:], n.mode)
	le.PutUint64(b[8:], size)
	le.PutUint32(b[16:], raw)
	le.PutUint32(b[20:], ino)
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.mtimeNsec)
	le.PutUint32(b[44:], n.nlink)
}

func align(n, to int64) int64 { return (n + to - 1) / to * to }
