package qemu

import (
	"fmt"
	"net"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox/microvm"
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
	consoleFD   int
	rootFD      int   // 0: none
	diskFDs     []int // after the root's
	tapFD       int   // 0: none
	paged       bool  // restored, its memory is served
	incoming    bool  // restored: it has neither kernel nor initrd
	stateFD     int   // of a restored machine: its devices' state
	mac         net.HardwareAddr
	guestParams []string
	// Paths of what it boots from, unless incoming.
	kernel, initrd string
}

// Sizes.
const (
	mib = 1 << 20
	// codeMiB is the room for translated code: QEMU's own default grows up
	// to 1 GiB, outside of what the guest is limited to.
	codeMiB = 64
	// timerKHz is how fast the timer of an emulated processor counts as Linux
	// uses it: once in 16 ns. The guest measures that, wrongly on a busy host.
	timerKHz = 62500
)

// args is QEMU's command line.
func (m machine) args() []string {
	params := append(microvm.KernelParams(), "reboot=t")
	accel := "kvm"
	cpu := "host"
	if m.accel == AccelTCG {
		accel = fmt.Sprintf("tcg,thread=multi,tb-size=%d", codeMiB)
		cpu = "max"
		// Without this the guest measures its clock against a timer that is
		// emulated too, and hangs when the host is busy.
		if m.tscKHz > 0 {
			params = append(params, fmt.Sprintf("tsc_early_khz=%d", m.tscKHz))
			// And without this it compares the two again and again, finds its
			// clock wrong when the host is busy, and goes on with a timer of
			// 250 ticks a second: time is then as coarse, and it never rests.
			params = append(params, "tsc=reliable")
		}
		params = append(params, fmt.Sprintf("skep.timer=%d", timerKHz))
	}
	params = append(params, m.guestParams...)
	// What the kernel does not know it puts into the agent's environment. A
	// restored machine's clock leaps, and Go's runtime interrupts whatever it
	// finds running: 15 ms under emulation, in the way of the first request.
	params = append(params, "GODEBUG=asyncpreemptoff=1")
	board := "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on,memory-backend=mem"
	// A restored machine's memory is its own from where it writes.
	share := "on"
	if m.incoming {
		share = "off"
		board += ",suppress-vmdesc=on"
	}
	args := []string{
		// The name is how Reap knows the process.
		"-name", processName(m.id),
		// ACPI is how the guest finds its devices; without the clock it
		// waits a second for one.
		"-M", board,
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,share=%s", m.memoryMiB, memoryPath, share),
		"-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprint(m.memoryMiB), "-smp", fmt.Sprint(m.cpus),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", m.consoleFD), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", m.qmpFD), "-mon", "chardev=qmp,mode=control",
	}
	if m.incoming {
		// What devices writes has no description of the machine: fits
		// compares that. And the machine is where it was: its network need not
		// hear of it, and the guest takes 15 ms of emulation to tell.
		args = append(args, "-S", "-incoming", "defer",
			"-global", "migration.announce-rounds=0", "-global", "migration.send-configuration=off")
	} else {
		args = append(args, "-kernel", fdPath(m.kernelFD), "-initrd", fdPath(m.initrdFD), "-append", strings.Join(params, " "))
	}
	for i, fd := range m.disks() {
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, i+1),
			"-blockdev", fmt.Sprintf("driver=file,node-name=disk%d,filename=/dev/fdset/%d,read-only=on,locking=off,cache.no-flush=on", i, i+1),
			"-device", fmt.Sprintf("virtio-blk-device,drive=disk%d", i),
		)
	}
	// What the processor's instruction gives is the emulator's in any case;
	// this is the host's own generator.
	args = append(args, "-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng")
	if m.tapFD > 0 {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net,fd=%d", m.tapFD),
			"-device", fmt.Sprintf("virtio-net-device,netdev=net,mac=%s", m.mac),
		)
	}
	return args
}

// disks are the descriptors of all disks, the root's first.
func (m machine) disks() []int {
	if m.rootFD == 0 {
		return nil
	}
	return append([]int{m.rootFD}, m.diskFDs...)
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// processName is an argument that only this sandbox's QEMU has.
func processName(id string) string { return "guest=skep-" + id }
