package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// The function's process begins as a copy of the agent, the stage, in new
// namespaces: it makes the root file system, says so, waits to be told what
// to run, and becomes that. All of its own start-up therefore happens before
// the function is wanted.

// StageArg, as the only argument, makes the agent a stage.
const StageArg = "stage"

// File descriptors of the stage beyond the standard ones.
const (
	stageOrders = 3 // messages from the agent
	stageReport = 4 // 'r' when ready; then nothing, or why exec failed
)

const stageReady = 'r'

// maxOrder bounds a message to the stage; the protocol's bounds are tighter.
const maxOrder = 4 << 20

// maxReport bounds what the stage says when it fails.
const maxReport = 4 << 10

type stage struct {
	cmd    *exec.Cmd
	orders *os.File
	report *os.File
}

// startStage starts the stage in the cgroup, and returns when it is ready.
func startStage(cg *cgroup, conf *agentpb.ConfigureRequest, stdout, stderr *os.File) (*stage, error) {
	ordersR, ordersW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersR.Close() //nolint:errcheck // read end of a pipe
	reportR, reportW, err := os.Pipe()
	if err != nil {
		_ = ordersW.Close()
		return nil, err
	}
	defer reportW.Close() //nolint:errcheck // nothing was written by us
	s := &stage{orders: ordersW, report: reportR}
	s.cmd = exec.Command("/proc/self/exe", StageArg) //nolint:noctx // it outlives the request that wants it
	s.cmd.Env = []string{"GOMAXPROCS=1"}
	s.cmd.Stdout, s.cmd.Stderr = stdout, stderr
	s.cmd.ExtraFiles = []*os.File{ordersR, reportW}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    cg.fd(),
	}
	if err := s.cmd.Start(); err != nil {
		s.close()
		return nil, fmt.Errorf("start the stage: %w", err)
	}
	_ = reportW.Close() // else we would never see its end
	err = send(ordersW, conf)
	if err == nil {
		var ready [1]byte
		if _, err = io.ReadFull(reportR, ready[:]); err == nil && ready[0] != stageReady {
			rest, _ := io.ReadAll(io.LimitReader(reportR, maxReport))
			err = errors.New(string(ready[:]) + string(rest))
		}
	}
	if err != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) close() {
	_ = s.orders.Close()
	_ = s.report.Close()
}

// become makes the stage the function's process.
func (s *stage) become(p *agentpb.Process) error {
	defer s.close()
	if err := send(s.orders, p); err != nil {
		return err
	}
	why, err := io.ReadAll(io.LimitReader(s.report, maxReport))
	if err != nil {
		return err
	}
	if len(why) > 0 {
		return errors.New(string(why))
	}
	return nil
}

func send(w io.Writer, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receive(r io.Reader, m proto.Message) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxOrder {
		return fmt.Errorf("message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}

// RunStage is the stage's main function. It does not return.
func RunStage() {
	runtime.LockOSThread() // capabilities belong to threads
	orders := os.NewFile(stageOrders, "orders")
	report := os.NewFile(stageReport, "report")
	unix.CloseOnExec(stageOrders)
	unix.CloseOnExec(stageReport)
	err := runStage(orders, report)
	_, _ = io.WriteString(report, err.Error())
	os.Exit(127)
}

func runStage(orders io.Reader, report io.Writer) error {
	var conf agentpb.ConfigureRequest
	if err := receive(orders, &conf); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if err := makeRoot(&conf); err != nil {
		return fmt.Errorf("make the root file system: %w", err)
	}
	if _, err := report.Write([]byte{stageReady}); err != nil {
		return err
	}
	var p agentpb.Process
	if err := receive(orders, &p); err != nil {
		return fmt.Errorf("read the process to start: %w", err)
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	// As other runtimes do: an image may name a directory it does not have.
	if err := os.MkdirAll(p.Cwd, 0o755); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	u, err := resolveUser(p.User)
	if err != nil {
		return err
	}
	env := withDefaults(p.Env, u)
	// A function that opens /dev/stdout again must be allowed to.
	for fd := range 3 {
		_ = unix.Fchown(fd, u.Uid, u.Gid)
	}
	if err := confineThread(); err != nil {
		return err
	}
	if err := unix.Setgroups(u.Sgids); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := unix.Setresgid(u.Gid, u.Gid, u.Gid); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	if err := unix.Setresuid(u.Uid, u.Uid, u.Uid); err != nil {
		return fmt.Errorf("set user: %w", err)
	}
	if err := os.Chdir(p.Cwd); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	path, err := lookPath(p.Args[0], env)
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, p.Args, env); err != nil {
		return execError(p.Args[0], err)
	}
	return nil // not reached
}
