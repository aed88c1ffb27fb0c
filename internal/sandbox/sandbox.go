// Package sandbox is the contract between a node and the technologies that
// isolate a function: gVisor, QEMU micro-VMs, runc, Firecracker.
//
// A driver lives in a folder of its own below this one and passes the
// conformance suite in sandboxtest. What a driver cannot do it says in its
// Capabilities; it never pretends.
package sandbox

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

var (
	// ErrNotRunning is returned by operations that need a started sandbox.
	ErrNotRunning = errors.New("sandbox is not running")
	// ErrUnsupported is returned by an operation that the driver's
	// Capabilities say it does not have.
	ErrUnsupported = errors.New("not supported by this driver")
	// ErrOtherDisk is returned for a snapshot that has a disk mounted, of which
	// another image is given. The text goes between the two.
	ErrOtherDisk = errors.New("is not the image that the snapshot has")
)

// Driver makes sandboxes of one technology. All methods are safe for
// concurrent use.
type Driver interface {
	// Name is the driver's name in flags, annotations and metrics.
	Name() string

	// Capabilities says what sandboxes of this driver can do on this machine.
	Capabilities() Capabilities

	// Probe proves that the driver works on this machine by starting a real
	// sandbox and stopping it again. The error says what is missing and
	// which distribution package brings it. The sandbox has the scratch's ID,
	// cgroup and Dir, which exists and is empty; whoever made it records it
	// before, as for Create, and removes it after.
	Probe(ctx context.Context, scratch State) error

	// Create prepares a sandbox: everything up to, but not including, the
	// function's own process. On error nothing is left behind.
	Create(ctx context.Context, spec *Spec) (Sandbox, error)

	// Reap removes whatever a sandbox with this state left on the machine
	// after its owner died: processes, mounts, cgroups, files in its Dir.
	// It is idempotent, and needs no Sandbox value: a new process calls it
	// for what an earlier one recorded. It never touches the network, which
	// belongs to package network.
	Reap(ctx context.Context, state State) error
}

// Capabilities describes a driver on this machine.
type Capabilities struct {
	// Link is the kind of network interface that Spec.Link must hold.
	Link LinkKind
	// HardwareVirtualization is true if a hypervisor extension is in use
	// (KVM), false for emulation, user-space kernels and plain containers.
	HardwareVirtualization bool
	// OwnKernel is true if the function does not share the host's kernel.
	OwnKernel bool
	// Snapshot: the driver is a Snapshotter, its sandboxes are Savers.
	Snapshot bool
	// RestoreModes are those that Restore.Mode may ask for, the driver's own
	// choice first.
	RestoreModes []RestoreMode
	// PreparedMode is the one of RestoreModes for a sandbox that is prepared
	// long before it is started; "" if that is the driver's own choice, too.
	PreparedMode RestoreMode
	// LayeredSnapshot: a snapshot can hold only what changed since another.
	LayeredSnapshot bool
	// OnDemandMemory: the pages that a restored sandbox touches can be recorded.
	OnDemandMemory bool
	// BlockDevices: the root file system is attached as a block device.
	BlockDevices bool
	// Disks: Spec.Disks may be given, the driver's sandboxes are Mounters.
	Disks bool
	// RootfsXattrs: the root file system may have extended attributes.
	RootfsXattrs bool
}

// LinkKind is the kind of network interface a sandbox is given.
type LinkKind string

const (
	// LinkVeth is one end of a veth pair, named Link.Interface, in Link.NetNS.
	LinkVeth LinkKind = "veth"
	// LinkTAP is a TAP device, named Link.Interface, in Link.NetNS.
	LinkTAP LinkKind = "tap"
)

// State is what must be recorded before Create so that Reap can clean up
// after a crash.
type State struct {
	ID     string // Spec.ID
	Dir    string // Spec.Dir
	Cgroup string // Spec.Cgroup
}

// Spec describes a sandbox to create.
type Spec struct {
	// ID identifies the sandbox: exactly 16 lower-case hexadecimal digits.
	// (Of fixed length because runsc matches prefixes.)
	ID string
	// Dir is an existing, empty directory of the sandbox's own. The driver
	// keeps all its files there; whoever made it removes it after Destroy.
	Dir string
	// Rootfs is the path of a read-only EROFS image, shared by sandboxes.
	// The sandbox sees it writable; what it writes is private and limited
	// by Resources.DiskBytes.
	Rootfs string
	// Hostname inside the sandbox.
	Hostname string
	// Process is the function's main process.
	Process Process
	// Resources limit the sandbox.
	Resources Resources
	// Link is the sandbox's only network interface.
	Link Link
	// Cgroup is the sandbox's cgroup path, relative to the hierarchy's root,
	// e.g. "skep-1a2b3c4d/0123456789abcdef". The driver makes and removes it.
	Cgroup string
	// Disks are further read-only file systems, for Mounter.Mount: EROFS
	// images, or others that the driver knows. It needs Capabilities.Disks.
	Disks []string
	// Stdout and Stderr take the output of Process. They outlive Create
	// (the caller closes them after Destroy) and may be FIFOs.
	Stdout, Stderr *os.File
}

// Process is a process to run in a sandbox.
type Process struct {
	Args []string // Args[0] is looked up in the PATH of Env if it has no slash
	Env  []string // KEY=value
	Cwd  string   // absolute; "" means /
	// User as in an OCI image's config: "", "uid", "uid:gid", "name" or
	// "name:group", resolved with the rootfs's own passwd and group files.
	User string
}

// Resources limit a sandbox. Zero means the driver's default.
type Resources struct {
	MemoryBytes int64 // for the function: a driver adds its own overhead
	CPUMillis   int64 // 1000 is one CPU
	PIDs        int64 // processes and threads
	DiskBytes   int64 // writable space on the root file system
}

// Link is the sandbox's network interface. It has the same name, addresses
// and MAC in every sandbox, because each is in a namespace of its own.
type Link struct {
	NetNS     string // path of the namespace that holds Interface
	Interface string // name within NetNS: "eth0" (veth) or "tap0" (TAP)
	MAC       net.HardwareAddr
	Address   net.IPNet // the sandbox's address and mask
	Gateway   net.IP
	MTU       int
	DNS       []net.IP // resolvers; none without egress
	// DialNS is the path of the namespace from which Address is reached.
	DialNS string
}

// Sandbox is one isolated function instance. All methods are safe for
// concurrent use.
type Sandbox interface {
	// ID is Spec.ID.
	ID() string

	// Start starts the function's process. It returns once the process has
	// been started, before it is ready for requests. It may be called once.
	Start(ctx context.Context) error

	// Dial connects to a TCP port inside the sandbox.
	Dial(ctx context.Context, port int) (net.Conn, error)

	// Exec runs another process beside the function's and waits for it.
	// Cancelling ctx kills it.
	Exec(ctx context.Context, e Exec) (Exit, error)

	// Signal sends a signal to the function's process.
	Signal(ctx context.Context, sig os.Signal) error

	// Wait blocks until the function's process has ended, for whatever
	// reason, and says why. It may be called any number of times.
	Wait(ctx context.Context) (Exit, error)

	// Stats measures what the sandbox uses now.
	Stats(ctx context.Context) (Stats, error)

	// Phases says how long each phase of Create and Start took, in order.
	Phases() []Phase

	// Destroy kills everything in the sandbox and frees all it holds but
	// its Dir, its Link and its rootfs. It is idempotent and works on a
	// sandbox that never started or has exited. Give it a context that
	// outlives a cancelled request.
	Destroy(ctx context.Context) error
}

// PortWaiter is implemented by sandboxes that can learn from inside that a
// port is open, cheaper or sooner than by dialling it again and again.
type PortWaiter interface {
	// WaitPort returns nil once something listens on the TCP port.
	WaitPort(ctx context.Context, port int) error
}

// Mounter is implemented by the sandboxes of drivers whose Capabilities say
// Disks.
type Mounter interface {
	// Mount mounts a disk, read-only, on a directory of the running sandbox;
	// disk 0 is Spec.Disks[0]. It is part of snapshots that are made afterwards,
	// and sandboxes restored from these need the same disk.
	Mount(ctx context.Context, disk int, target string) error
}

// Exec is a process to run in a running sandbox.
type Exec struct {
	Process
	Stdin          *os.File // nil means /dev/null
	Stdout, Stderr *os.File // nil means discard
}

// Exit says how a process ended.
type Exit struct {
	// Code is the exit code, or 128 + the signal's number.
	Code int
	// Signal that ended the process, 0 if none.
	Signal int
	// OOMKilled is true if the process was killed for want of memory.
	OOMKilled bool
	// Reason is for people: why the sandbox ended, if Code does not tell,
	// e.g. `exec: "/app": no such file or directory`.
	Reason string
	// At is when it ended.
	At time.Time
}

// ReasonStalled is the Reason of a function that was killed because it made no
// progress any more for want of memory. OOMKilled is true, too.
const ReasonStalled = "out of memory: it only waited for pages of its own files to be read again; give it more memory"

// Stats is a sandbox's use of the machine, the driver's overhead included.
type Stats struct {
	MemoryBytes int64
	CPUTime     time.Duration
}

// Phase is one step of starting a sandbox.
type Phase struct {
	Name string
	Took time.Duration
}
