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
//
// # What QEMU must be told
//
// A destination is started with -incoming defer and without a kernel, and then
// told, by QMP: migrate-set-capabilities, migrate-incoming with the uri fd:N, N
// being an inherited descriptor. It runs (event RESUME) once all is loaded or,
// with -S, is paused until cont; a cont that comes before counts as well.
//
//   - State.WriteTo, State.WriteIncoming: capability x-ignore-shared, if the
//     state has it (IgnoreShared). The memory is a memory-backend-file with
//     share=off over the base, or a memory-backend-ram.
//   - Source: capability postcopy-ram and nothing else, whatever the state was
//     saved with. N is one end of a stream socket pair, for QEMU talks back.
//     The memory is a memory-backend-ram, or a memory-backend-file with
//     share=on over a memfd of the machine's own; of a file with share=off
//     QEMU would punch the pages out. The process needs userfaultfd.
//   - A state of ParseDevices: -global migration.send-configuration=off and the
//     machine option suppress-vmdesc=on, besides.
//
// To save, the memory being shared: capability x-ignore-shared, then migrate
// with the uri fd:NAME of a descriptor that getfd brought; Parse reads what
// comes. With private memory the capability must be off, and Split takes the
// memory out of what comes. A machine that a Source serves is completed first
// (Source.Complete), and postcopy-ram switched off.
package migration
