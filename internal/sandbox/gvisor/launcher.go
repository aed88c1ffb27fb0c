package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
)

// maxLaunchLog bounds how much of a launcher's log goes into an error.
const maxLaunchLog = 4 << 10

// launcher is the driver's end of a launch process.
type launcher struct {
	cmd     *exec.Cmd
	log     string // file that takes the process's own stdout and stderr
	reports *json.Decoder
	from    *os.File // reports come from here
	orders  *os.File
	ended   chan struct{} // closed once the process has been waited for
}

// startLauncher starts a launch process, with more arguments for it. The
// caller must close it.
func startLauncher(program string, spec *sandbox.Spec, more []string) (_ *launcher, err error) {
	l := &launcher{log: filepath.Join(spec.Dir, "launch.log"), ended: make(chan struct{})}
	var files []*os.File // of the child
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			l.closePipes()
		}
	}()
	reportsRead, reportsWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start runsc: pipe: %w", err)
	}
	files = append(files, reportsWrite)
	l.from, l.reports = reportsRead, json.NewDecoder(io.LimitReader(reportsRead, 1<<20))
	ordersRead, ordersWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start runsc: pipe: %w", err)
	}
	files = append(files, ordersRead)
	l.orders = ordersWrite
	log, err := os.OpenFile(l.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start runsc: %w", err)
	}
	files = append(files, log)

	args := append([]string{"runsc"}, runscFlags(rootDir(spec.Dir))...)
	args = append(args, launchCommand, "--bundle="+spec.Dir)
	args = append(append(args, more...), spec.ID)
	l.cmd = &exec.Cmd{
		Path:   program,
		Args:   args,
		Dir:    "/",
		Env:    []string{"GOGC=off"}, // lives for a few milliseconds of work
		Stdout: log,
		Stderr: log,
		// In the order of the launch descriptors.
		ExtraFiles: []*os.File{reportsWrite, ordersRead, spec.Stdout, spec.Stderr},
		// A signal for the daemon's process group is not for sandboxes.
		SysProcAttr: &unix.SysProcAttr{Setsid: true},
	}
	if err := l.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start runsc: %w", err)
	}
	go func() {
		_ = l.cmd.Wait() // what it did it reports; why it failed it logs
		close(l.ended)
	}()
	return l, nil
}

// await waits for the report of a step.
func (l *launcher) await(ctx context.Context, step string) (launchReport, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.from.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var r launchReport
	switch err := l.reports.Decode(&r); {
	case ctx.Err() != nil:
		return r, fmt.Errorf("runsc: %s: %w", step, context.Cause(ctx))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return r, fmt.Errorf("runsc: %s: the process ended unexpectedly: %s", step, l.lastWords())
	case err != nil:
		return r, fmt.Errorf("runsc: %s: %w", step, err)
	case r.Step != step:
		return r, fmt.Errorf("runsc: %s: unexpected report %q", step, r.Step)
	case r.Error != "":
		return r, fmt.Errorf("runsc: %s: %s", step, r.Error)
	}
	return r, nil
}

// order orders a step, and waits until it is done.
func (l *launcher) order(ctx context.Context, step string) (launchReport, error) {
	if _, err := io.WriteString(l.orders, step+"\n"); err != nil {
		return launchReport{}, fmt.Errorf("runsc: %s: the process is gone: %w: %s", step, err, l.lastWords())
	}
	return l.await(ctx, step)
}

// close ends the process, in the end with force, and waits for it.
func (l *launcher) close(ctx context.Context) {
	l.closePipes()
	select {
	case <-l.ended:
		return
	case <-ctx.Done():
	}
	_ = l.cmd.Process.Kill()
	<-l.ended
}

// release lets the process go, which may then say nothing any more.
func (l *launcher) release() { l.orders.Close() }

func (l *launcher) closePipes() {
	for _, f := range []*os.File{l.from, l.orders} {
		if f != nil {
			f.Close()
		}
	}
}

// lastWords is the end of the process's log.
func (l *launcher) lastWords() string {
	b, err := os.ReadFile(l.log)
	if err != nil {
		return err.Error()
	}
	s := strings.TrimSpace(string(b[max(0, len(b)-maxLaunchLog):]))
	if s == "" {
		return "it left no message"
	}
	return s
}
