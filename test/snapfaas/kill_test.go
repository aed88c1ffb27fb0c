package snapfaas

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// killedDump kills firerunner while it writes a diff: the folder has what it
// had, or nothing, and the next one leaves no half in it.
func (w *world) killedDump(line, base, dir string) {
	w.t.Helper()
	w.mkdir(dir)
	dump := line + " --load_dir " + base + " --dump_dir " + dir + " --force_exit"
	load := line + " --load_dir " + base + "," + dir
	for try := 0; !w.half(dir); try++ { // unless it was through before the kill
		if try == 10 {
			w.t.Errorf("%s: always through before it was killed", dump)
			return
		}
		w.killWriting(dump, dir)
	}
	if _, stderr, err := w.try(requests, load); err != nil && !strings.Contains(stderr, "no snapshot in it") {
		w.t.Errorf("%s: after a kill: %v\n%s", load, err, stderr)
	}
	w.run("", dump)
	if w.half(dir) {
		w.t.Errorf("%s: the half of a process that was killed is still there", dump)
	}
	w.wantAnswers(load)
}

// half says if a folder has a snapshot that is not whole.
func (w *world) half(dir string) bool {
	found, err := filepath.Glob(filepath.Join(w.path(dir), ".new-*"))
	return err == nil && len(found) > 0
}

// killWriting runs a line, and kills its firerunner when it writes to a folder.
func (w *world) killWriting(line, dir string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := w.command(ctx, "", line)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ended:
			return
		case <-look.C:
		}
		if w.half(dir) {
			break
		}
	}
	for _, pid := range children(cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := <-ended; err == nil && w.half(dir) {
		w.t.Errorf("%s: no error, and no snapshot", line)
	}
}

// children are the processes that a process has started.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for f := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}
