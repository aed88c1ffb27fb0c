package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/qemu/launcher"
	"github.com/skep-dev/skep/internal/sandbox/qemu/qmp"
)

// vm is a running QEMU.
type vm struct {
	*microvm.Monitor
	qmp      *qmp.Client
	loaded   chan string // how loading a snapshot's devices ended
	stateFD  int         // QEMU's number of where they are
	stopping atomic.Bool // it is being stopped by us
}

// startVM starts QEMU with the guest's memory as its descriptor 0 and the files
// from 3 on. ours are our ends of its control connection and of its console;
// theirs are the other ends, among the files. It takes over all four,
// but not the other files.
func startVM(ctx context.Context, program string, m machine, memory *os.File, files []*os.File, ours [2]net.Conn, theirs [2]*os.File, g *cgroup.Group) (*vm, error) {
	qmpEnd, out := ours[0], ours[1]
	cmd := exec.Command(program, m.args()...) //nolint:noctx // it outlives ctx
	v := &vm{Monitor: microvm.NewMonitor("QEMU", cmd), loaded: make(chan string, 1), stateFD: m.stateFD}
	cmd.Stdin = memory // see filter
	cmd.ExtraFiles = files
	uid := microvm.UID(m.id)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		// It is given its network open. Its own has nothing in it.
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: kvmGroups(m.accel)},
	}
	err := launcher.Start(cmd, launcher.Options{NoHugePages: m.incoming, Userfaultfd: m.paged, Filter: filter()})
	// QEMU must be their only owner, so that we see its end.
	err = errors.Join(err, theirs[0].Close(), theirs[1].Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), out.Close(), qmpEnd.Close())
	}
	placed := v.Follow(out, g)
	v.qmp, err = qmp.Open(ctx, qmpEnd, v.event)
	if err == nil && placed != nil {
		err = errors.Join(placed, v.qmp.Close())
	}
	if err != nil {
		if errors.Is(err, qmp.ErrClosed) {
			_ = v.Wait(ctx) // it is about to end, and has said why
			err = v.Explain()
		}
		v.End()
		return nil, err
	}
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
	switch e.Name {
	case "SHUTDOWN":
		var d struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(e.Data, &d)
		v.Note(fmt.Sprintf("%.64s", d.Reason))
	case "GUEST_PANICKED":
		v.Note("the guest's kernel panicked")
	case "MIGRATION":
		v.migrated(e.Data)
	case "STOP":
		if !v.stopping.Load() {
			v.Fail(errors.New("the processor could not go on"))
		}
	}
}

// registersTimeout bounds a question to QEMU about a machine that is lost.
const registersTimeout = 5 * time.Second

// registers says where the machine's processor is, for whoever wants to know
// why it does not answer.
func (v *vm) registers(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, registersTimeout)
	defer cancel()
	var text string
	if err := v.qmp.Execute(ctx, "human-monitor-command", map[string]any{"command-line": "info registers"}, &text); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%.600s", strings.Join(strings.Fields(text), " "))
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
