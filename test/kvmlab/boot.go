package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/test/kvmlab/lab"
)

// args is QEMU's command line. One processor: with two, one run in four hangs.
func (m *machine) args(o options, j lab.Job, nonce string) []string {
	params := []string{
		"console=ttyS0", "quiet", "loglevel=4", "reboot=t", "panic=-1", "cryptomgr.notests", "mitigations=off",
		"audit=0", "nowatchdog", "pci=off", "ipv6.disable_ipv6=1", "random.trust_cpu=on",
		fmt.Sprintf("tsc_early_khz=%d", qemu.TSCKHz()), lab.NonceParam + "=" + nonce, lab.JobParam + "=" + j.Name,
	}
	return []string{
		"-M", "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on",
		"-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm", "-smp", "1", "-m", fmt.Sprint(o.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", m.kernel, "-initrd", m.initrd,
		"-drive", "id=root,file=" + m.rootImage() + ",format=raw,if=none,readonly=on",
		"-device", "virtio-blk-device,drive=root",
		"-drive", "id=scratch,file=" + m.scratch(j) + ",format=raw,if=none,cache=unsafe",
		"-device", "virtio-blk-device,drive=scratch",
		"-append", strings.Join(params, " "),
	}
}

// result is what came of a machine.
type result struct {
	code int           // the job's exit code
	note string        // what it says of its tests
	cpu  time.Duration // what QEMU used: about the time it takes on a machine with nothing else to do
}

// sayTimeout is for a machine's start, and for what tests say that are out of
// time.
const sayTimeout = time.Minute

// boot runs one machine to its end. An error means that it did not get there.
func (m *machine) boot(ctx context.Context, o options, j lab.Job) (r result, err error) {
	var b [8]byte
	_, _ = rand.Read(b[:])
	nonce := hex.EncodeToString(b[:])
	// A little more than the tests have: they say where they were.
	ctx, cancel := context.WithTimeout(ctx, o.timeout+sayTimeout)
	defer cancel()
	if err := m.makeScratch(ctx, m.scratch(j)); err != nil {
		return r, err
	}
	defer os.Remove(m.scratch(j)) //nolint:errcheck // the whole folder goes in the end
	cmd := exec.CommandContext(ctx, m.qemu, m.args(o, j, nonce)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	alive := watchAlive(cmd.Process, o.quiet)
	w := watcher{job: j.Name, nonce: nonce, verbose: o.verbose, out: os.Stdout, began: time.Now()}
	br := bufio.NewReaderSize(out, 64<<10)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			alive.said()
			w.line(string(line))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	hung := alive.end()
	err = cmd.Wait()
	r = result{w.code, w.note, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	switch {
	case w.ended && w.exited:
		return r, nil
	case w.ended: // that line was torn, or there was no such job
		err = errors.New("the machine did not say how its job ended")
	case ctx.Err() != nil:
		err = ctx.Err()
	case hung:
		err = errors.New("the machine has hung: it says nothing")
	case err == nil:
		err = errors.New("the machine stopped")
	}
	w.flush()
	return r, fmt.Errorf("%w: %s", err, lastLine(stderr.String()))
}

// lastLine leaves out QEMU's warnings about features, which come first.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// scratchBytes is the size of the machine's /tmp: a disk, as what is written to
// a file system in memory counts as the writer's memory.
const scratchBytes = 8 << 30

func (m *machine) scratch(j lab.Job) string { return filepath.Join(m.dir, "scratch-"+j.Name) }

// makeScratch makes an empty file system, sparse.
func (*machine) makeScratch(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(scratchBytes), f.Close())
	}
	if err != nil {
		return err
	}
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", path)
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s (the package e2fsprogs brings it)", err, bytes.TrimSpace(out))
	}
	return nil
}

// watcher reads the console. What a job says is kept until it has ended: of
// one that passes only the results are shown.
type watcher struct {
	job     string
	nonce   string
	verbose bool
	out     io.Writer
	began   time.Time
	kept    []string
	exited  bool // the job
	code    int
	note    string
	ended   bool // the machine
}

// keep bounds the lines of a job that are kept.
const keep = 20000

func (w *watcher) line(s string) {
	mark, ok := lab.ParseMark(s, w.nonce)
	switch {
	case !ok && w.verbose:
		w.say(s)
	case !ok:
		if len(w.kept) < keep {
			w.kept = append(w.kept, s)
		}
	case mark.Kind == lab.MarkExit:
		w.exited, w.code, w.note = true, mark.Code, mark.Note
		if mark.Code != 0 {
			w.flush()
		}
		for _, l := range w.kept {
			if t := strings.TrimSpace(l); strings.HasPrefix(t, "--- ") || strings.HasPrefix(t, "ok") {
				w.say(l)
			}
		}
		w.kept = nil
	case mark.Kind == lab.MarkTick && w.verbose:
		w.say(fmt.Sprintf("alive after %s\n", time.Since(w.began).Round(time.Second)))
	case mark.Kind == lab.MarkEnd:
		w.ended = true
	}
}

// say shows a line, of which the job is named: others may run.
func (w *watcher) say(line string) {
	if strings.TrimSpace(line) != "" {
		_, _ = fmt.Fprintf(w.out, "%s: %s\n", w.job, strings.TrimRight(line, "\r\n"))
	}
}

// flush shows what is kept.
func (w *watcher) flush() {
	for _, l := range w.kept {
		w.say(l)
	}
	w.kept = nil
}
