// Package migration reads and writes QEMU's migration streams, and plays the
// source of a postcopy migration, so that an unmodified QEMU restores a
// snapshot the way its user wants: with the pages that changed copied over a
// mapped base (State.WriteIncoming), or with a recorded working set ahead and
// everything else page by page on demand (Source).
//
// A stream of version 3, as QEMU 2.4 and later write it, all numbers big
// endian:
//
//	"QEVM" 3
//	CONFIGURATION  machine type, and subsections: capabilities ...
//	START          section "ram": blocks with names and sizes, EOS; footer
//	PART ...       pages of the blocks, EOS; footer
//	END            the same, for the last time; footer
//	FULL ...       a device each, in its own format; footer
//	EOF
//	VMDESCRIPTION  JSON that says what the devices' sections hold
//
// What is between the footer of the section "ram" and EOF is opaque here and is
// handed from stream to stream as it is: only QEMU needs to understand it. With
// the capability x-ignore-shared the blocks that are shared memory have no
// pages in the stream: their memory is the file that backs them.
//
// The format is described in QEMU's docs/devel/migration (main and postcopy).
// Only machines with pages of 4 KiB are known here.
package migration
