package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// childFiles are the pipes of a process that is being started.
type childFiles struct{ ends []*os.File }

// output makes a pipe for output, returns the child's end, and sets *s.
func (c *childFiles) output(s **stream) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.ends = append(c.ends, w)
	*s = newStream(r) // ends when the last writer has closed
	return w, nil
}

func (c *childFiles) closeChildEnds() {
	for _, f := range c.ends {
		_ = f.Close()
	}
}

// Exec starts a process in the function's namespaces and cgroup.
func (g *guest) Exec(_ context.Context, r *agentpb.ExecRequest) (uint32, error) {
	g.mu.Lock()
	main, ready := g.procs[function], g.stage == nil
	if main == nil || !ready {
		g.mu.Unlock()
		return 0, errors.New("the function has not been started")
	}
	if g.execs >= agent.MaxExecs {
		g.mu.Unlock()
		return 0, fmt.Errorf("%d processes beside the function's are running already", agent.MaxExecs)
	}
	g.execs++
	g.mu.Unlock()

	p, err := g.startBeside(main, r)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.execs--
		return 0, err
	}
	id := g.nextID
	g.nextID++
	g.procs[id] = p
	return id, nil
}

func (g *guest) startBeside(main *process, r *agentpb.ExecRequest) (*process, error) {
	var files childFiles
	defer files.closeChildEnds()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	files.ends = append(files.ends, null)
	p := &process{ended: make(chan struct{}), out: endedStream(), err: endedStream()}
	stdio := []*os.File{null, null, null}
	if r.Stdin {
		in, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		files.ends = append(files.ends, in)
		stdio[0], p.in = in, w
	}
	if r.Stdout {
		if stdio[1], err = files.output(&p.out); err != nil {
			p.closeInput()
			return nil, err
		}
	}
	if r.Stderr {
		if stdio[2], err = files.output(&p.err); err != nil {
			p.closeInput()
			return nil, err
		}
	}
	kills := g.cg.oomKills()
	if p.proc, err = g.spawn(main.proc.Pid, r.Process, stdio); err != nil {
		p.closeInput()
		return nil, err
	}
	go p.watch(g.cg, kills)
	return p, nil
}

// spawn starts a process from a thread that has entered the function's
// namespaces and given up its capabilities. The thread ends with it.
func (g *guest) spawn(target int, r *agentpb.Process, stdio []*os.File) (*os.Process, error) {
	type result struct {
		p   *os.Process
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it
		p, err := g.spawnHere(target, r, stdio)
		done <- result{p, err}
	}()
	res := <-done
	return res.p, res.err
}

func (g *guest) spawnHere(target int, r *agentpb.Process, stdio []*os.File) (*os.Process, error) {
	// A pidfd, so that a process number that is used again is not entered.
	fd, err := unix.PidfdOpen(target, 0)
	if err != nil {
		return nil, fmt.Errorf("the function has ended: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, err
	}
	err = unix.Setns(fd, unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP)
	if err != nil {
		return nil, fmt.Errorf("enter the function's namespaces: %w", err)
	}
	u, err := resolveUser(r.User)
	if err != nil {
		return nil, err
	}
	env := withDefaults(r.Env, u)
	path, err := lookPath(r.Args[0], env)
	if err != nil {
		return nil, err
	}
	if err := confineThread(); err != nil {
		return nil, err
	}
	groups := make([]uint32, len(u.Sgids))
	for i, gid := range u.Sgids {
		groups[i] = uint32(gid)
	}
	for _, f := range stdio {
		_ = f.Chown(u.Uid, u.Gid) // see runStage
	}
	dir := r.Cwd
	if dir == "" {
		dir = "/"
	}
	p, err := os.StartProcess(path, r.Args, &os.ProcAttr{
		Dir: dir, Env: env, Files: stdio,
		Sys: &syscall.SysProcAttr{
			Setsid:      true,
			UseCgroupFD: true,
			CgroupFD:    g.cg.fd(),
			Credential:  &syscall.Credential{Uid: uint32(u.Uid), Gid: uint32(u.Gid), Groups: groups},
		},
	})
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, execError(r.Args[0], err)
	}
	return p, nil
}
