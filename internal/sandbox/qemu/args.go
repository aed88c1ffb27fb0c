package qemu

import (
	"fmt"
	"net"
	"runtime"
	"strings"
)

// machine is what one virtual machine is made of. Descriptors are numbers in
// QEMU's process: it is given everything open, and can open nothing itself.
type machine struct {
	id          string
	accel       Accel
	memoryMiB   int64
	cpus        int64
	tscKHz      int64 // 0: let the guest measure
	kernelFD    int
	initrdFD    int
	qmpFD       int
	rootFD      int // 0: none
	tapFD       int // 0: none
	mac         net.HardwareAddr
	guestParams []string
}

// Sizes.
const (
	mib = 1 << 20
	// codeMiB is the room for translated code: QEMU's own default grows up
	// to 1 GiB, outside of what the guest is limited to.
	codeMiB = 64
)

// kernelParams are the guest kernel's. What each saves was measured: see the
// comments. Security features are switched off only where they protect the
// function from itself; the host's protection is the virtual machine.
var kernelParams = []string{
	"console=ttyS0", "quiet",
	"reboot=t", "panic=-1", // a panic ends the machine at once
	"cryptomgr.notests", // 250 ms under emulation
	"mitigations=off", "init_on_alloc=0", "audit=0", "lsm=",
	"rodata=off", // splitting huge pages of the kernel's
	"nowatchdog", "8250.nr_uarts=1", "pci=off",
	"ipv6.disable_ipv6=1", // sockets exist, addresses do not
	"random.trust_cpu=on",
}

// args is QEMU's command line.
func (m machine) args() []string {
	params := append([]string(nil), kernelParams...)
	accel := "kvm"
	cpu := "host"
	if m.accel == AccelTCG {
		accel = fmt.Sprintf("tcg,thread=multi,tb-size=%d", codeMiB)
		cpu = "max"
		// Without this the guest measures its clock against a timer that is
		// emulated too, and hangs when the host is busy.
		if m.tscKHz > 0 {
			params = append(params, fmt.Sprintf("tsc_early_khz=%d", m.tscKHz))
		}
	}
	params = append(params, m.guestParams...)
	args := []string{
		// The name is how Reap knows the process.
		"-name", processName(m.id),
		// ACPI is how the guest finds its devices; without the clock it
		// waits a second for one.
		"-M", "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on,memory-backend=mem",
		"-object", fmt.Sprintf("memory-backend-ram,id=mem,size=%dM", m.memoryMiB),
		"-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprint(m.memoryMiB), "-smp", fmt.Sprint(m.cpus),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", m.qmpFD), "-mon", "chardev=qmp,mode=control",
		"-kernel", fdPath(m.kernelFD), "-initrd", fdPath(m.initrdFD),
		"-append", strings.Join(params, " "),
	}
	if m.rootFD > 0 {
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=1", m.rootFD),
			"-blockdev", "driver=file,node-name=root,filename=/dev/fdset/1,read-only=on,locking=off,cache.no-flush=on",
			"-device", "virtio-blk-device,drive=root",
		)
	}
	if m.tapFD > 0 {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net,fd=%d", m.tapFD),
			"-device", fmt.Sprintf("virtio-net-device,netdev=net,mac=%s", m.mac),
		)
	}
	return args
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// processName is an argument that only this sandbox's QEMU has.
func processName(id string) string { return "guest=skep-" + id }

// vcpus is how many processors a limit needs.
func vcpus(millis int64) int64 {
	return max(1, min((millis+999)/1000, int64(runtime.NumCPU())))
}
