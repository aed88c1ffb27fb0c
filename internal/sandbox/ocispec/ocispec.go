// Package ocispec turns a sandbox.Spec into an OCI runtime specification,
// for the drivers that start containers (runc, gVisor).
package ocispec

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Options are what a sandbox.Spec does not say.
type Options struct {
	// Root is the root file system's path for the runtime, absolute or
	// relative to the bundle.
	Root string
	// Image is the content of the root file system, for users, groups and
	// what must be mounted over it. See OpenImage.
	Image fs.FS
	// HostKernel is true for a container on the host's own kernel: it is
	// given a seccomp profile and the host's cgroups, read-only.
	HostKernel bool
	// Annotations for the runtime.
	Annotations map[string]string
}

const (
	defaultMemory = 256 << 20
	defaultPIDs   = 1024
	maxOpenFiles  = 65536
	// oomScoreAdj makes the kernel prefer functions to the daemon when the
	// whole machine is out of memory.
	oomScoreAdj = 500
)

// Defaults fills in the drivers' defaults where a resource is zero. CPU has
// none: it is not limited. Disk is half the memory, because what is written
// counts as memory: a full disk should be an error, not the end.
func Defaults(r sandbox.Resources) sandbox.Resources {
	if r.MemoryBytes == 0 {
		r.MemoryBytes = defaultMemory
	}
	if r.DiskBytes == 0 {
		r.DiskBytes = r.MemoryBytes / 2
	}
	if r.PIDs == 0 {
		r.PIDs = defaultPIDs
	}
	return r
}

// capabilities are containerd's defaults without those that only matter to
// system software: MKNOD, NET_RAW, SYS_CHROOT, SETFCAP, SETPCAP, AUDIT_WRITE.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
}

// New makes the runtime specification. The files it mounts from Spec.Dir are
// made by WriteFiles. Limits are set in it too, but only package cgroup
// limits swap: make Spec.Cgroup with that first.
func New(s *sandbox.Spec, o Options) (*specs.Spec, error) {
	p, err := Process(s, o.Image, s.Process)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version:     "1.0.2", // what the oldest supported runtime knows
		Process:     p,
		Root:        &specs.Root{Path: o.Root},
		Hostname:    s.Hostname,
		Mounts:      mounts(s, o),
		Annotations: o.Annotations,
		Linux: &specs.Linux{
			CgroupsPath: "/" + s.Cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: s.Link.NetNS},
			},
			Resources:     resources(Defaults(s.Resources)),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	if o.HostKernel {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		// The namespace is the sandbox's own: let any user listen on port 80.
		spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
		if spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec); err != nil {
			return nil, fmt.Errorf("seccomp profile: %w", err)
		}
	}
	return spec, nil
}

// Process makes the specification of the function's process, or of another
// one in the same sandbox.
func Process(s *sandbox.Spec, image fs.FS, p sandbox.Process) (*specs.Process, error) {
	if len(p.Args) == 0 {
		return nil, errors.New("process.args: empty")
	}
	u, home, err := ResolveUser(image, p.User)
	if err != nil {
		return nil, fmt.Errorf("process.user: %w", err)
	}
	cwd := p.Cwd
	if cwd == "" {
		cwd = "/"
	}
	oom := oomScoreAdj
	return &specs.Process{
		Args:            p.Args,
		Env:             environment(p.Env, home, s.Hostname),
		Cwd:             cwd,
		User:            u,
		NoNewPrivileges: true,
		OOMScoreAdj:     &oom,
		Capabilities: &specs.LinuxCapabilities{
			Bounding:  capabilities,
			Effective: capabilities,
			Permitted: capabilities,
		},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: openFiles(), Hard: openFiles()}},
	}, nil
}

// openFiles is the limit of open files. More than our own hard limit would
// need a capability that we may lack.
func openFiles() uint64 {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return maxOpenFiles
	}
	return min(maxOpenFiles, own.Max)
}

func resources(r sandbox.Resources) *specs.LinuxResources {
	res := &specs.LinuxResources{
		// The runtime adds /dev/null and its kin.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: &r.MemoryBytes},
		Pids:    &specs.LinuxPids{Limit: r.PIDs},
	}
	if r.CPUMillis > 0 {
		period := uint64(100_000)
		quota := max(r.CPUMillis*int64(period)/1000, 1000)
		shares := uint64(max(r.CPUMillis*1024/1000, 2))
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota, Shares: &shares}
	}
	return res
}

func mounts(s *sandbox.Spec, o Options) []specs.Mount {
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=1m"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=64m"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
	if o.HostKernel {
		// Runtimes (Java, Go, Node) size heaps and pools by these limits.
		m = append(m, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
	}
	// Images FROM scratch have no /tmp, and programs expect one.
	if _, err := fs.Stat(o.Image, "tmp"); err != nil {
		size := strconv.FormatInt(Defaults(s.Resources).DiskBytes, 10)
		m = append(m, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "mode=1777", "size=" + size}})
	}
	for _, f := range etcFiles {
		// Read-only: they are on the host's disk, where the sandbox's limit
		// does not count.
		m = append(m, specs.Mount{Destination: "/etc/" + f, Type: "bind", Source: filepath.Join(etcDir(s), f),
			Options: []string{"bind", "ro", "nosuid", "noexec", "nodev"}})
	}
	return m
}

// The same as containerd's and Docker's.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)
