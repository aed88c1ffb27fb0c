// Package erofs flattens the layers of an OCI image, read as tar streams,
// into one read-only EROFS file system image.
//
// Nothing is ever unpacked onto the host's file system: a tar entry becomes
// a node of an in-memory tree and its data goes straight to the output file,
// so that no entry can escape anywhere. The output is a function of the
// layers' bytes alone: the same layers give the same image, byte for byte.
//
// # Layout
//
// Uncompressed, 4096-byte blocks, no incompatible feature, so that every
// kernel since 5.4 and gVisor's reader take it:
//
//	block 0       superblock at byte 1024, with checksum
//	data          regular files, in the order they arrive, each from a block
//	              boundary on (flat plain: mapped straight from the page cache)
//	directories   those too large to follow their inode, and long symlinks
//	metadata      extended inodes, inline xattrs, inline directories and symlinks
//
// Data of files that a later layer replaces or removes is punched out of the
// output: it takes no space and reads as zeros. So do blocks of zeros.
//
// # Two variants
//
// gVisor's reader refuses an inode that has extended attributes. For images
// that have any, [Builder.WriteStripped] writes a second variant without them.
package erofs
