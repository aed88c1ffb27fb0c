package firecracker

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/testenv"
)

// The monitor is jailed: root folder, user, network and process numbers of its
// own, its files mounted only for itself. For that it needs no KVM.
func TestJail(t *testing.T) {
	testenv.Root(t)
	var d Driver
	var program string
	d.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, path := range map[string]*string{"firecracker": &program, "jailer": &d.jailer} {
		var err error
		if *path, err = findProgram(name, ""); err != nil {
			t.Skip(err)
		}
	}
	d.program = microvm.NewProgram(program)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id := sandbox.NewID()
	// Longer than a socket's address.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	file := filepath.Join(t.TempDir(), "kernel")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := cgroup.Create("skep-jail-"+id, cgroup.Limits{MemoryBytes: 64 << 20, PIDs: threads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		clean, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.Reap(clean, sandbox.State{ID: id, Dir: dir, Cgroup: g.Path()}); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 || g.Exists() {
			t.Errorf("left behind: %v, %v, cgroup %v", left, err, g.Exists())
		}
	})
	j, err := newJail(dir, program, id, microvm.UID(id))
	if err != nil {
		t.Fatal(err)
	}
	l := launch{id: id, fileBytes: 1 << 20, binds: []bind{{file, kernelPath}}, group: g}
	if _, err := d.start(ctx, j, l); err == nil || !strings.Contains(err.Error(), "o+r") {
		t.Errorf("with a file that it cannot read: %v", err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	v, err := d.start(ctx, j, l)
	if err != nil {
		t.Fatal(err)
	}
	defer v.end()
	info, err := v.api.Describe(ctx)
	if err != nil || info.ID != id {
		t.Errorf("Describe: %+v, %v", info, err)
	}
	if err := v.api.PutBootSource(ctx, fcapi.BootSource{Kernel: kernelPath}); err != nil {
		t.Errorf("the mounted file: %v", err)
	}
	if b, err := os.ReadFile(j.path(kernelPath)); err != nil || len(b) > 0 {
		t.Errorf("the mount is seen from outside: %q, %v", b, err)
	}
	if err := v.api.PutBootSource(ctx, fcapi.BootSource{Kernel: file}); err == nil {
		t.Error("the monitor sees the host's files")
	}
	proc := "/proc/" + strconv.Itoa(v.Pid())
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tfirecracker", "Uid:\t" + strconv.Itoa(j.uid), "Gid:\t" + strconv.Itoa(j.uid), "CapEff:\t0000000000000000", "Groups:\t \n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the process's status lacks %q", want)
		}
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + ns)
		theirs, err2 := os.Readlink(proc + "/ns/" + ns)
		if err1 != nil || err2 != nil || ours == theirs {
			t.Errorf("namespace %s: ours %s, the monitor's %s, %v, %v", ns, ours, theirs, err1, err2)
		}
	}
	CheckFilters(t, v.Pid(), "fc_api") // the others begin with the machine
	if pids, err := g.Procs(); err != nil || len(pids) != 1 || pids[0] != v.Pid() {
		t.Errorf("the cgroup has %v, %v", pids, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(proc+"/root/dev/kvm", &st); err == nil && st.Uid != uint32(j.uid) {
		t.Errorf("/dev/kvm belongs to %d", st.Uid)
	}
}
