package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox/qemu/launcher"
	"github.com/skep-dev/skep/internal/sandbox/qemu/qmp"
)

// vm is a running QEMU.
type vm struct {
	cmd     *exec.Cmd
	console *microvm.Console
	stderr  tailBuffer
	qmp     *qmp.Client
	greeted time.Time
	dead    chan struct{} // closed when the process has been waited for
	loaded  chan string   // how loading a snapshot's devices ended
	stateFD int           // QEMU's number of where they are
	// memory is that of a machine that was booted, else nil.
	memory *os.File

	mu       sync.Mutex
	reason   string // why it stopped, in QEMU's words
	stopping bool   // it is being stopped, and will go on
}

// Each QEMU has a user of its own, so that one that is broken out of can do
// nothing to others. The range is one that nothing assigns, see systemd's
// "Users, Groups, UIDs and GIDs".
const (
	firstUID = 1879048192
	uidMask  = 0xffffff
)

// uid derives a sandbox's user from its random ID.
func uid(id string) uint32 {
	var n uint64
	_, _ = fmt.Sscanf(id, "%x", &n)
	return firstUID + uint32(n&uidMask)
}

// oomScoreAdj makes the host prefer sandboxes to the daemon when the whole
// machine is out of memory.
const oomScoreAdj = "500"

// maxMessages bounds what is kept of QEMU's own messages.
const maxMessages = 4 << 10

// startVM starts QEMU with the guest's memory as its descriptor 0 and the files
// from 3 on. ours are our ends of its control connection and of its console;
// theirs are the other ends, among the files. It takes over all four,
// but not the other files.
func startVM(ctx context.Context, program string, m machine, memory *os.File, files []*os.File, ours [2]net.Conn, theirs [2]*os.File, g *cgroup.Group) (*vm, error) {
	qmpEnd, out := ours[0], ours[1]
	v := &vm{dead: make(chan struct{}), loaded: make(chan string, 1), stateFD: m.stateFD}
	v.cmd = exec.Command(program, m.args()...) //nolint:noctx // it outlives ctx
	v.cmd.Dir = "/"
	v.cmd.Env = []string{}
	v.cmd.Stdin = memory // see filter
	v.cmd.Stderr = &v.stderr
	v.cmd.ExtraFiles = files
	v.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		// It is given its network open. Its own has nothing in it.
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Uid: uid(m.id), Gid: uid(m.id), Groups: kvmGroups(m.accel)},
	}
	err := launcher.Start(v.cmd, launcher.Options{NoHugePages: m.incoming, Userfaultfd: m.paged, Filter: filter()})
	// QEMU must be their only owner, so that we see its end.
	err = errors.Join(err, theirs[0].Close(), theirs[1].Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), out.Close(), qmpEnd.Close())
	}
	// Before it has taken any memory worth counting. A process that has ended
	// already says why below.
	placed := g.Add(v.cmd.Process.Pid)
	if placed == nil {
		placed = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", v.cmd.Process.Pid), []byte(oomScoreAdj), 0)
	}
	v.console = microvm.ReadConsole(out)
	go func() {
		_ = v.cmd.Wait() // how it ended, explain says
		<-v.console.Done()
		close(v.dead)
	}()
	v.qmp, err = qmp.Open(ctx, qmpEnd, v.event)
	if err == nil && placed != nil {
		err = errors.Join(placed, v.qmp.Close())
	}
	if err != nil {
		if errors.Is(err, qmp.ErrClosed) {
			_ = v.wait(ctx) // it is about to end, and has said why
			err = v.explain()
		}
		v.kill()
		<-v.dead
		return nil, err
	}
	v.greeted = time.Now()
	return v, nil
}

// kvmGroups is the group that may open /dev/kvm.
func kvmGroups(a Accel) []uint32 {
	var st unix.Stat_t
	if a != AccelKVM || unix.Stat("/dev/kvm", &st) != nil {
		return nil
	}
	return []uint32{st.Gid}
}

// event keeps what tells why a machine stopped. A machine that is paused was
// paused by an error: KVM does so when it cannot go on.
func (v *vm) event(e qmp.Event) {
	var why string
	switch e.Name {
	case "SHUTDOWN":
		var d struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(e.Data, &d)
		why = fmt.Sprintf("%.64s", d.Reason)
	case "GUEST_PANICKED":
		why = "the guest's kernel panicked"
	case "MIGRATION":
		v.migrated(e.Data)
		return
	case "STOP":
		v.mu.Lock()
		stopping := v.stopping
		v.mu.Unlock()
		if stopping {
			return
		}
		why = "the processor could not go on"
		v.kill()
	default:
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.reason == "" {
		v.reason = why
	}
}

// expectStop says that the machine is about to be stopped, or goes on.
func (v *vm) expectStop(yes bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stopping = yes
}

// whenDead calls f when the process has ended, unless stop is called before: a
// machine that is gone does not even refuse a connection.
func (v *vm) whenDead(f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-v.dead:
			f()
		case <-done:
		}
	}()
	return func() { close(done) }
}

// wait waits for the process's end.
func (v *vm) wait(ctx context.Context) error {
	select {
	case <-v.dead:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill ends the process. It is safe at any time: os.Process knows if the
// number is still its own.
func (v *vm) kill() { _ = v.cmd.Process.Kill() }

// explain says why the machine has ended, or does not come up.
func (v *vm) explain() error {
	v.mu.Lock()
	reason := v.reason
	v.mu.Unlock()
	parts := []string{"the virtual machine ended"}
	select {
	case <-v.dead:
		parts = append(parts, v.cmd.ProcessState.String())
	default:
		parts[0] = "the virtual machine does not answer"
	}
	if reason != "" {
		parts = append(parts, reason)
	}
	if s := v.stderr.String(); s != "" {
		parts = append(parts, "QEMU says: "+s)
	}
	if s := v.console.Tail(); s != "" {
		parts = append(parts, "its console says: "+s)
	}
	return errors.New(strings.Join(parts, "; "))
}

// awaitReady waits until the guest's agent listens.
func (v *vm) awaitReady(ctx context.Context) error {
	select {
	case <-v.console.Ready():
		return nil
	case <-v.dead:
		select {
		case <-v.console.Ready(): // and ended at once, as a probe does
			return nil
		default:
		}
		return v.explain()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ctx.Err(), v.explain())
	}
}

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > maxMessages {
		t.b = append([]byte(nil), t.b[len(t.b)-maxMessages:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ReplaceAll(string(t.b), "\n", " "))
}

// socketPair makes QEMU's control connection: ours, and QEMU's end.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	f := os.NewFile(uintptr(fds[0]), "ours")
	defer f.Close() //nolint:errcheck // FileConn duplicates
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}
