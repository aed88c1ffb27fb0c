package snapfaas

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// onGVisor runs the walk-through with gVisor's sandboxes in the place of
// micro-VMs.
func (w *world) onGVisor(machine, full, hello string) {
	const dir = "gvisor/"
	machine, full = " --sandbox gvisor"+machine, " --sandbox gvisor"+full
	w.wantAnswers("singlevm"+machine+hello, "app loaded: ")

	w.mkdir(dir+"python3", dir+"diff/hello-python3", dir+"diff/second", dir+"whole")
	w.run("", "singlevm"+machine+" --dump_dir "+dir+"python3 --force_exit")
	const base = " --load_dir " + dir + "python3"
	const diff = base + " --diff_dirs " + dir + "diff/hello-python3"
	const second = diff + "," + dir + "diff/second"
	w.wantAnswers("singlevm"+machine+hello+base, "restore memory: ", "app loaded: ")
	w.run("", "singlevm"+machine+hello+base+" --dump_dir "+dir+"diff/hello-python3 --force_exit")
	w.wantAnswers("singlevm"+machine+hello+diff, "restore memory: ")
	w.wantAnswers("singlevm"+machine+hello+diff+" --copy_base", "restore memory: ")
	w.run("", "singlevm"+machine+hello+diff+" --dump_dir "+dir+"diff/second --force_exit")
	w.wantAnswers("singlevm"+machine+hello+second, "restore memory: ")
	// With the app in it, but no base.
	w.run("", "singlevm"+machine+hello+" --snapshot_point app --dump_dir "+dir+"whole --force_exit")
	w.wantAnswers("singlevm"+machine+hello+" --load_dir "+dir+"whole", "restore memory: ")
	w.mkdir(dir + "fullapp")
	w.wantAnswers("singlevm"+full+" --dump_dir "+dir+"fullapp", "snapshot saved: ")
	w.wantAnswers("singlevm"+full+" --load_dir "+dir+"fullapp", "restore memory: ")
	w.smaller(dir+"diff/hello-python3", dir+"python3")

	w.write("longer/workload.py", "def handle(obj):\n    return 'longer'\n"+strings.Repeat("# longer\n", 1000))
	w.run("", "skep app build longer appfs/longer")
	w.write("appfs/ext2", strings.Repeat("no EROFS", 1024))
	for _, bad := range []struct {
		line  string
		words []string
	}{
		{"singlevm" + machine + hello + diff + " --load_ws", []string{"--load_ws", "gVisor cannot see"}},
		{"singlevm" + machine + hello + diff + " --dump_ws", []string{"--dump_ws", "gVisor cannot see"}},
		{"singlevm" + machine + " --appfs appfs/longer" + diff, []string{"--appfs", "disks[0]", "is not the image that the snapshot has at /srv"}},
		{"singlevm" + machine + " --appfs appfs/ext2" + base, []string{"disks[0]", "gVisor mounts EROFS only"}},
		{"singlevm" + strings.Replace(machine, "gvisor", "qemu", 1) + hello + base, []string{"made with --sandbox gvisor, this is qemu"}},
		{"singlevm" + strings.Replace(machine, "gvisor", "runc", 1), []string{"--sandbox", "qemu, gvisor"}},
		{"singlevm" + machine + base, []string{"there is no app", "--appfs"}},
	} {
		w.fails(bad.line, bad.words...)
	}
	if _, stderr := w.run("", "singlevm"+machine+hello+" --kernel_args quiet"); !strings.Contains(stderr, "--kernel_args has no effect") {
		w.t.Errorf("--kernel_args: %s", stderr)
	}
	w.killed("singlevm" + machine + hello + diff)
	w.killedDump("singlevm"+machine+hello, dir+"python3", dir+"killed")
	w.cluster("sandbox: gvisor\n" + strings.Replace(yaml, "./snapshot", "./"+dir, 1))
}

// smaller checks that a diff's folder takes less room than its base's.
func (w *world) smaller(diff, base string) {
	w.t.Helper()
	size := func(dir string) (n int64) {
		entries, err := os.ReadDir(w.path(dir))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(w.path(dir), e.Name()), &st); err != nil {
				w.t.Fatal(err)
			}
			n += st.Blocks * 512
		}
		return n
	}
	if d, b := size(diff), size(base); d >= b {
		w.t.Errorf("the diff takes %d bytes, its base %d", d, b)
	}
}

// killed kills the tool while its sandbox takes requests. The child ends by
// itself; what is left of the tool's folder the next one removes.
func (w *world) killed(line string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := w.command(ctx, "", line)
	cmd.Stdin = nil
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(in, "{\"name\":\"Ann\"}\n"); err != nil {
		w.t.Error(err)
	}
	if got, err := bufio.NewReader(out).ReadString('\n'); err != nil || got != "{\"message\":\"hello, Ann\"}\n" {
		w.t.Errorf("%s: %q, %v", line, got, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	w.wantAnswers(line)
}
