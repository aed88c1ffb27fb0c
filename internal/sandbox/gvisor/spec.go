package gvisor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// What gVisor needs beside the function, on top of its limits.
const (
	overheadMemory = 64 << 20
	overheadPIDs   = 512 // threads of gVisor's kernel
	pidsPerTask    = 4   // host threads for one of the function's, if that is a process of its own
)

// platformName is gVisor's way of running the function's code.
const platformName = "systrap"

// nobody is the host's user that gVisor runs as.
const nobody = 65534

// limits are the sandbox's on the host.
func limits(r sandbox.Resources) cgroup.Limits {
	return cgroup.Limits{
		MemoryBytes: r.MemoryBytes + overheadMemory,
		CPUMillis:   r.CPUMillis,
		PIDs:        r.PIDs*pidsPerTask + overheadPIDs, // a last resort, see limitTasks
	}
}

// runscFlags are runsc's own flags, the same for every command of a sandbox.
// What is not said is runsc's default.
func runscFlags(root string) []string {
	return []string{
		"--root=" + root, // one for each sandbox: nothing is shared
		"--platform=" + platformName,
		"--network=sandbox",
		"--ignore-cgroups", // limits are package cgroup's work
		// No file system is reached directly: there is none but the image.
		// But with this the sandbox process enters the user namespace of our
		// spec, and without, it executes this large binary twice.
		"--directfs=true",
		"--host-uds=none",
		"--host-fifo=none",
		"--host-settings=ignore",           // neither looked at nor changed
		"--restore-spec-validation=ignore", // the contract asks for it, see sandbox.Snapshotter
		"--allow-rootfs-tar-annotation",    // annotations are ours, never the image's
		// The sandbox process is this executable, not one installed beside it.
		"--sidecar-usage-policy=LEGACY_DEPRECATED_SLOW_EMBEDDED_FALLBACK",
	}
}

// newSpec makes the OCI runtime spec, and the files that it refers to. A
// sandbox that is restored has its files already, and is told which must be
// its own.
func newSpec(s *sandbox.Spec, image fs.FS, restore *sandbox.Restore, mounts []mounted) (*specs.Spec, error) {
	r := ocispec.Defaults(s.Resources)
	spec, err := ocispec.New(s, ocispec.Options{
		Root:  "/", // not used, see the annotations
		Image: image,
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  s.Rootfs,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "memory",
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%d", r.DiskBytes),
			annotationMemory:                 strconv.FormatInt(r.MemoryBytes, 10),
			annotationCPUs:                   strconv.Itoa(cpus(r.CPUMillis)),
			annotationPIDs:                   strconv.FormatInt(r.PIDs, 10),
		},
	})
	if err != nil {
		return nil, err
	}
	spec.Linux.CgroupsPath, spec.Linux.Resources = "", nil

	// A root of nothing: the sandbox process has the rights it needs for
	// setting itself up, but as nobody on the host.
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	id := []specs.LinuxIDMapping{{ContainerID: 0, HostID: nobody, Size: 1}}
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = id, id

	spec.Linux.Sysctl = map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}

	if err := ocispec.WriteFiles(s); err != nil {
		return nil, err
	}
	files := withoutBinds(spec)
	machineID := filepath.Join(s.Dir, "etc", "machine-id")
	if err := os.WriteFile(machineID, newMachineID(), 0o600); err != nil {
		return nil, fmt.Errorf("make files for /etc: %w", err)
	}
	files["etc/machine-id"] = machineID
	if restore != nil {
		if err := setIdentity(spec, files); err != nil {
			return nil, err
		}
		for _, m := range mounts { // so gVisor opens them again
			spec.Mounts = append(spec.Mounts, specs.Mount{
				Destination: m.Target, Type: "erofs", Source: s.Disks[m.Disk], Options: []string{"ro"},
			})
		}
		if restore.Mode == sandbox.RestoreEager {
			spec.Annotations[annotationHold] = "yes"
		}
	} else if err := setUpper(s, spec, files, image); err != nil {
		return nil, err
	}
	// Where an image's /tmp is empty gVisor mounts a tmpfs, without a limit
	// unless we do it.
	if entries, err := fs.ReadDir(image, "tmp"); err == nil && len(entries) == 0 {
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: "/tmp", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", r.DiskBytes)},
		})
	}
	return spec, nil
}

// cpus is the number of CPUs that the function sees. Never one where there are
// more: programs leave out locks and barriers then, but the limit is one of
// time, and the sandbox may run on several CPUs.
func cpus(millis int64) int {
	n := runtime.NumCPU()
	if millis == 0 {
		return n
	}
	return min(n, max(2, int((millis+999)/1000)))
}
