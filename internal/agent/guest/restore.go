package guest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// Suspend opens the files that Restored rewrites: there, every step is in the
// way of a request.
func (g *guest) Suspend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.procs[function]
	if p == nil {
		return
	}
	for _, f := range g.nameFiles {
		_ = unix.Close(f.fd)
	}
	g.nameFiles = openNames(p.proc.Pid, namesOf(g.conf))
}

// Freeze stops the function. A restored machine's processor goes on where it
// was: threads of the function's that did not wait for the agent would draw the
// same random numbers in all clones, at the old time and under the old name.
func (g *guest) Freeze() (agent.Marks, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.procs[function]
	if p == nil {
		return agent.Marks{}, nil
	}
	err := g.cg.freeze()
	return agent.Marks{Stdout: p.out.written(), Stderr: p.err.written()}, err
}

// Thaw has a frozen function go on.
func (g *guest) Thaw() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cg.thaw()
}

// Restored gives the guest an identity of its own. The clock comes first, as
// every moment makes it wrong. Here every line counts: where the processor is
// emulated, all code is translated anew, at some 10 us for each of its blocks,
// while the first request waits.
func (g *guest) Restored(r *agent.Restored) error {
	if err := g.SetClock(r.Wall); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conf == nil {
		return errors.New("not configured")
	}
	if err := g.addEntropy(&r.Entropy); err != nil {
		return err
	}
	if r.NewDisks {
		if err := lookAgain(); err != nil {
			return err
		}
	}
	g.conf.MachineId = hex.EncodeToString(r.MachineID[:])
	if r.Hostname != "" {
		g.conf.Hostname = r.Hostname
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	n := namesOf(g.conf)
	for i := range g.nameFiles {
		if err := g.nameFiles[i].rewrite(n); err != nil {
			return err
		}
	}
	return g.cg.thaw()
}

// SetClock sets the wall clock.
func (*guest) SetClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// addEntropy mixes bytes into the kernel's random generator, trusts them, and
// has it use them at once: see random(4).
func (g *guest) addEntropy(b *[agent.EntropySize]byte) error {
	info := struct { // rand_pool_info
		bits, size int32
		b          [agent.EntropySize]byte
	}{8 * agent.EntropySize, agent.EntropySize, *b}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.random), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info)))
	if errno == 0 {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(g.random), unix.RNDRESEEDCRNG, 0)
	}
	if errno != 0 {
		return fmt.Errorf("reseed the random generator: %w", errno)
	}
	return nil
}

// names are what the files in /etc say of a guest.
type names struct{ hostname, address, machineID string }

func namesOf(c *agentpb.ConfigureRequest) names { return names{c.Hostname, c.Address, c.MachineId} }

// etcFile is a file in /etc that says names.
type etcFile struct {
	path string // relative to the root
	text func(names) string
}

var etcFiles = []etcFile{{"etc/hostname", names.hostnameFile}, {"etc/hosts", names.hostsFile}, {machineIDPath, names.machineIDFile}}

const machineIDPath = "etc/machine-id"

func (n names) name() string {
	if n.hostname == "" {
		return "localhost"
	}
	return n.hostname
}

func (n names) hostnameFile() string { return n.name() + "\n" }

// hostsFile has a name for the own address: it spares servers that ask for
// their full name (Python's http.server) a DNS time-out.
func (n names) hostsFile() string {
	hosts := "127.0.0.1\tlocalhost\n"
	if n.name() != "localhost" && n.address != "" {
		hosts += n.address + "\t" + n.name() + "\n"
	}
	return hosts
}

// machineIDFile is empty if there is to be none.
func (n names) machineIDFile() string {
	if n.machineID == "" {
		return ""
	}
	return n.machineID + "\n"
}

// nameFile is an open file of names.
type nameFile struct {
	etcFile
	fd  int
	was string
}

// openNames opens the files in a process's root that say what we wrote there.
// What the function has made its own is left to it.
func openNames(pid int, n names) []nameFile {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	var open []nameFile
	for _, file := range etcFiles {
		text := file.text(n)
		if text == "" {
			continue
		}
		fd, err := unix.Openat2(root, file.path, &unix.OpenHow{
			Flags:   unix.O_RDWR | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err != nil {
			continue
		}
		have := make([]byte, len(text)+1)
		if k, err := unix.Pread(fd, have, 0); err != nil || string(have[:k]) != text {
			_ = unix.Close(fd)
			continue
		}
		open = append(open, nameFile{file, fd, text})
	}
	return open
}

// rewrite replaces the content.
func (f *nameFile) rewrite(n names) error {
	text := f.text(n)
	if text == f.was {
		return nil
	}
	_, err := unix.Pwrite(f.fd, []byte(text), 0)
	if err == nil && len(text) != len(f.was) {
		err = unix.Ftruncate(f.fd, int64(len(text)))
	}
	if err != nil {
		return fmt.Errorf("write /%s: %w", f.path, err)
	}
	f.was = text
	return nil
}
