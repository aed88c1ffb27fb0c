package migration_test

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
	"github.com/skep-dev/skep/internal/sandbox/microvm/initramfs"
	"github.com/skep-dev/skep/internal/sandbox/qemu/qmp"
	"github.com/skep-dev/skep/internal/testenv"
)

const ramSize = 128 << 20

// machine is a running QEMU.
type machine struct {
	t       testing.TB
	cmd     *exec.Cmd
	qmp     *qmp.Client
	control *net.UnixConn
	console net.Conn
	lines   chan string
	stderr  bytes.Buffer
	exited  chan struct{}
	resumed chan struct{}
	// migrations has the states that QEMU reports, each as it is entered.
	migrations chan string
}

// options of a machine.
type options struct {
	memory   string   // arguments of the object "mem"
	boot     []string // kernel and so on
	incoming *os.File // our end's other end; nil: boot
	start    func(*exec.Cmd) error
	board    string   // further options of the machine type
	args     []string // further arguments
	shared   *os.File // memory that we have, too; it stays ours
}

// launch starts QEMU and enters QMP's command mode.
func launch(ctx context.Context, t testing.TB, o options) *machine {
	t.Helper()
	program := testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	qmpEnd, qmpFile := socketPair(t)
	console, consoleFile := socketPair(t)
	disk := bootFiles(t).disk
	args := []string{
		"-M", "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on,memory-backend=mem" + o.board,
		"-object", o.memory,
		"-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-m", fmt.Sprintf("%dM", ramSize>>20), "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=console,fd=4", "-serial", "chardev:console",
		"-blockdev", "driver=file,node-name=root,filename=" + disk + ",read-only=on,locking=off",
		"-device", "virtio-blk-device,drive=root",
	}
	files := []*os.File{qmpFile, consoleFile}
	if o.incoming != nil {
		args = append(args, "-incoming", "defer")
		files = append(files, o.incoming)
	}
	inherited := slices.Clone(files)
	if o.shared != nil {
		o.memory = fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=/proc/self/fd/%d,share=on", ramSize, 3+len(files))
		inherited = append(inherited, o.shared)
	}
	for i, a := range args {
		if a == "-object" {
			args[i+1] = o.memory
		}
	}
	m := &machine{t: t, control: qmpEnd.(*net.UnixConn), console: console, lines: make(chan string, 1024), exited: make(chan struct{}), resumed: make(chan struct{}), migrations: make(chan string, 64)}
	m.cmd = exec.Command(program, slices.Concat(args, o.boot, o.args)...)
	m.cmd.ExtraFiles, m.cmd.Stderr, m.cmd.Env = inherited, &m.stderr, []string{}
	start := (*exec.Cmd).Start
	if o.start != nil {
		start = o.start
	}
	err := start(m.cmd)
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.kill)
	go func() {
		_ = m.cmd.Wait()
		close(m.exited)
	}()
	go m.readConsole()
	var once sync.Once
	m.qmp, err = qmp.Open(ctx, qmpEnd, func(e qmp.Event) {
		switch e.Name {
		case "RESUME":
			once.Do(func() { close(m.resumed) })
		case "MIGRATION":
			var d struct {
				Status string `json:"status"`
			}
			_ = json.Unmarshal(e.Data, &d)
			select {
			case m.migrations <- d.Status:
			default: // far more than there are states
			}
		}
	})
	if err != nil {
		m.kill()
		t.Fatalf("%v: %s", err, &m.stderr)
	}
	m.capability(ctx, "events")
	return m
}

func (m *machine) readConsole() {
	defer close(m.lines)
	sc := bufio.NewScanner(m.console)
	for sc.Scan() {
		m.lines <- strings.TrimSpace(sc.Text())
	}
}

// kill ends QEMU. It can be called again.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill()
	<-m.exited
	_ = m.console.Close()
	if m.qmp != nil {
		_ = m.qmp.Close()
	}
}

// expect waits for a line that begins so, and returns what follows.
func (m *machine) expect(ctx context.Context, prefix string) string {
	m.t.Helper()
	var seen []string
	for {
		select {
		case line, ok := <-m.lines:
			if !ok {
				<-m.exited
				m.t.Fatalf("waiting for %q: machine has ended: %s: %s", prefix, &m.stderr, strings.Join(seen, "\n"))
			}
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest
			}
			seen = append(seen, line)
		case <-ctx.Done():
			m.t.Fatalf("waiting for %q: %v: %s", prefix, ctx.Err(), strings.Join(seen, "\n"))
		}
	}
}

// ask writes a line and waits for its answer.
func (m *machine) ask(ctx context.Context, line, answer string) string {
	m.t.Helper()
	if _, err := m.console.Write([]byte(line + "\n")); err != nil {
		m.t.Fatal(err)
	}
	return m.expect(ctx, answer+" ")
}

func (m *machine) do(ctx context.Context, command string, args, result any) {
	m.t.Helper()
	if err := m.qmp.Execute(ctx, command, args, result); err != nil {
		m.t.Fatalf("%s: %v: %s", command, err, &m.stderr)
	}
}

type object = map[string]any

// capability switches one on.
func (m *machine) capability(ctx context.Context, name string) {
	m.t.Helper()
	m.do(ctx, "migrate-set-capabilities", object{"capabilities": []object{{"capability": name, "state": true}}}, nil)
}

// receive makes QEMU read the stream from its fifth descriptor.
func (m *machine) receive(ctx context.Context) {
	m.t.Helper()
	m.do(ctx, "migrate-incoming", object{"uri": "fd:5"}, nil)
}

// awaitMigration waits until QEMU reports one of some states.
func (m *machine) awaitMigration(ctx context.Context, states ...string) {
	m.t.Helper()
	for {
		select {
		case state := <-m.migrations:
			switch {
			case slices.Contains(states, state):
				return
			case state == "failed" || state == "cancelled":
				m.t.Fatalf("migration %s: %s", state, &m.stderr)
			}
		case <-m.exited:
			m.t.Fatalf("machine has ended: %s", &m.stderr)
		case <-ctx.Done():
			m.t.Fatalf("waiting for a migration to be %v: %v: %s", states, ctx.Err(), &m.stderr)
		}
	}
}

// awaitResume waits until the restored machine runs.
func (m *machine) awaitResume(ctx context.Context) {
	m.t.Helper()
	select {
	case <-m.resumed:
	case <-m.exited:
		m.t.Fatalf("machine has ended: %s", &m.stderr)
	case <-ctx.Done():
		m.t.Fatalf("machine does not run: %v", ctx.Err())
	}
}

// save makes QEMU send the machine's state, and gives what comes to take. The
// machine stands still afterwards.
func (m *machine) save(ctx context.Context, ignoreShared bool, take func(io.Reader) error) {
	m.t.Helper()
	if ignoreShared {
		m.capability(ctx, "x-ignore-shared")
	}
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	// A descriptor stays with the connection until a command takes it.
	_, _, err = m.control.WriteMsgUnix([]byte("\n"), unix.UnixRights(int(w.Fd())), nil)
	if err := errors.Join(err, w.Close()); err != nil {
		m.t.Fatal(err)
	}
	m.do(ctx, "getfd", object{"fdname": "save"}, nil)
	for len(m.migrations) > 0 {
		<-m.migrations
	}
	m.do(ctx, "migrate", object{"uri": "fd:save"}, nil)
	if err := take(r); err != nil {
		m.t.Fatalf("%v: %s", err, &m.stderr)
	}
	m.awaitMigration(ctx, "setup") // what was reported before was of the machine's own restore
	m.awaitMigration(ctx, "completed")
}

// socketPair is our end and one for a child.
func socketPair(t testing.TB) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	conn, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, os.NewFile(uintptr(fds[1]), "theirs")
}

// files that all machines share.
type files struct{ dir, kernel, initrd, disk string }

var shared struct {
	once  sync.Once
	files files
	err   error
}

// bootFiles makes them once.
func bootFiles(t testing.TB) files {
	t.Helper()
	shared.once.Do(func() { shared.files, shared.err = makeBootFiles(sharedDir) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.files
}

func makeBootFiles(dir string) (files, error) {
	f := files{dir, filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initrd"), filepath.Join(dir, "disk")}
	k, err := (guestkernel.Finder{}).Find()
	if err != nil {
		return f, err
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return f, err
	}
	kernel, err := guestkernel.Unpack(image)
	if err != nil {
		return f, err
	}
	// With the race detector the test's program is not static: then another
	// one of it is the guest (CGO_ENABLED=0 go test -c).
	program := os.Getenv("SKEP_TEST_GUEST")
	if program == "" {
		program = "/proc/self/exe"
	}
	self, err := os.ReadFile(program)
	if err != nil {
		return f, err
	}
	if x, err := elf.NewFile(bytes.NewReader(self)); err != nil || slices.ContainsFunc(x.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return f, errors.Join(err, errors.New("the test's program runs in the guest, so it must be static: set CGO_ENABLED=0 or SKEP_TEST_GUEST"))
	}
	mods, err := initramfs.ReadModules(k.Modules)
	if err != nil {
		return f, err
	}
	order, err := mods.Order("virtio_mmio", "virtio_blk")
	if err != nil {
		return f, err
	}
	var initrd bytes.Buffer
	if err := initramfs.Build(&initrd, self, mods, order); err != nil {
		return f, err
	}
	disk := make([]byte, 1<<20)
	fill(disk, 3)
	return f, errors.Join(os.WriteFile(f.kernel, kernel, 0o600), os.WriteFile(f.initrd, initrd.Bytes(), 0o600), os.WriteFile(f.disk, disk, 0o644))
}

// bootArgs boot the test's guest.
func bootArgs(t testing.TB) []string {
	f := bootFiles(t)
	params := "console=ttyS0 quiet reboot=t panic=-1 cryptomgr.notests mitigations=off init_on_alloc=0 audit=0 lsm= rodata=off nowatchdog 8250.nr_uarts=1 pci=off"
	if khz := tscKHz(); khz > 0 {
		params += fmt.Sprintf(" tsc_early_khz=%d", khz)
	}
	return []string{"-kernel", f.kernel, "-initrd", f.initrd, "-append", params}
}

// tscKHz is near enough.
func tscKHz() int64 {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(info), "cpu MHz")
	_, rest, _ = strings.Cut(rest, ":")
	rest, _, _ = strings.Cut(rest, "\n")
	mhz, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
	return int64(mhz * 1000)
}

func deadline(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
