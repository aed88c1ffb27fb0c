package guest

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// Suspend says how much output the function has written, and opens the files
// that Restored rewrites: there, every step is in the way of a request.
func (g *guest) Suspend() agent.Marks {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.procs[function]
	if p == nil {
		return agent.Marks{}
	}
	for _, f := range g.nameFiles {
		_ = unix.Close(f.fd)
	}
	g.nameFiles = openNames(p.proc.Pid, namesOf(g.conf))
	return agent.Marks{Stdout: p.out.written(), Stderr: p.err.written()}
}

// Restored gives the guest an identity of its own. The clock comes first, as
// every moment makes it wrong.
func (g *guest) Restored(r *agent.Restored) error {
	if err := g.SetClock(r.Wall); err != nil {
		return err
	}
	if err := addEntropy(r.Entropy[:]); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conf == nil {
		return errors.New("not configured")
	}
	if r.NewDisks {
		if err := lookAgain(); err != nil {
			return err
		}
	}
	old := namesOf(g.conf)
	g.conf.MachineId = hex.EncodeToString(r.MachineID[:])
	if r.Hostname != "" {
		g.conf.Hostname = r.Hostname
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	for _, f := range g.nameFiles {
		if err := f.rewrite(old, namesOf(g.conf)); err != nil {
			return err
		}
	}
	return nil
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
func addEntropy(b []byte) error {
	f, err := os.OpenFile("/dev/random", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing is buffered
	// struct rand_pool_info: bits, bytes, and the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(b)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(b)))
	info = append(info, b...)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0])))
	if errno == 0 {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0)
	}
	if errno != 0 {
		return fmt.Errorf("reseed the random generator: %w", errno)
	}
	return nil
}

// names are what the files in /etc say of a guest.
type names struct{ hostname, address, machineID string }

func namesOf(c *agentpb.ConfigureRequest) names { return names{c.Hostname, c.Address, c.MachineId} }

// files are the contents by path, relative to the root.
func (n names) files() map[string]string {
	host := n.hostname
	if host == "" {
		host = "localhost"
	}
	// A name for the own address spares servers that ask for their full name
	// (Python's http.server) a DNS time-out.
	hosts := "127.0.0.1\tlocalhost\n"
	if host != "localhost" && n.address != "" {
		hosts += n.address + "\t" + host + "\n"
	}
	f := map[string]string{"etc/hostname": host + "\n", "etc/hosts": hosts}
	if n.machineID != "" {
		f["etc/machine-id"] = n.machineID + "\n"
	}
	return f
}

// nameFile is an open file of names.
type nameFile struct {
	path string
	fd   int
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
	for path, text := range n.files() {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
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
		open = append(open, nameFile{path, fd})
	}
	return open
}

// rewrite replaces the content.
func (f nameFile) rewrite(old, now names) error {
	was, text := old.files()[f.path], now.files()[f.path]
	if was == text {
		return nil
	}
	_, err := unix.Pwrite(f.fd, []byte(text), 0)
	if err == nil && len(text) != len(was) {
		err = unix.Ftruncate(f.fd, int64(len(text)))
	}
	if err != nil {
		return fmt.Errorf("write /%s: %w", f.path, err)
	}
	return nil
}
