// Package snapfaas runs the walk-through of SnapFaaS's README, line by line,
// with the real binary under its three names, and what it can of it on gVisor.
package snapfaas

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/test/skeptest"
)

// patience is long enough for anything on a busy machine; nothing is measured
// with it.
const patience = 4 * time.Minute

// world is a folder to work in, as the walk-through's user has.
type world struct {
	t   *testing.T
	dir string
	// netns is the network namespace that commands run in; "" is the machine's.
	netns string
}

// binDir is where skep is built to, once for all tests.
var binDir string

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "skep-sf-bin-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

var buildSkep = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return skeptest.Build(ctx, filepath.Join(binDir, "skep"))
})

func newWorld(t *testing.T) *world {
	t.Helper()
	testenv.Root(t)
	testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	if testing.Short() {
		t.Skip("-short")
	}
	dir, err := os.MkdirTemp("/tmp", "skep-sf-") // t.TempDir() is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir}
	skep, err := buildSkep()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"skep", "singlevm", "multivm", "firerunner"} {
		if path := w.path("bin/" + name); os.MkdirAll(filepath.Dir(path), 0o755) != nil || os.Symlink(skep, path) != nil {
			t.Fatal("cannot link ", path)
		}
	}
	// The language's packages are kept from run to run.
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "skep-test", "build")
	for _, d := range []string{cache, w.path("data/cache")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(cache, w.path("data/cache/bases")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.wantNothingLeft)
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// command is one of the walk-through's lines.
func (w *world) command(ctx context.Context, stdin, line string) *exec.Cmd {
	args := strings.Fields(line)
	cmd := exec.CommandContext(ctx, w.path("bin/"+args[0]), args[1:]...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "SKEP_DATA="+w.path("data"))
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// run runs a line that must end well, and returns what it prints.
func (w *world) run(stdin, line string) (stdout, stderr string) {
	w.t.Helper()
	stdout, stderr, err := w.try(stdin, line)
	if err != nil {
		w.t.Fatalf("%s: %v\n%s%s", line, err, stdout, stderr)
	}
	w.t.Logf("%s\n%s", line, stderr)
	return stdout, stderr
}

func (w *world) try(stdin, line string) (string, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := w.command(ctx, stdin, line)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := w.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), errOut.String(), err
}

func (w *world) start(cmd *exec.Cmd) error {
	if w.netns == "" {
		return cmd.Start()
	}
	return netns.Do(w.netns, cmd.Start) // a child is where the thread is
}

// write makes a file.
func (w *world) write(name, text string) {
	w.t.Helper()
	w.mkdir(filepath.Dir(name))
	if err := os.WriteFile(w.path(name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// fails runs a line that must fail and say the words.
func (w *world) fails(line string, words ...string) {
	w.t.Helper()
	_, stderr, err := w.try("", line)
	if err == nil {
		w.t.Errorf("%s: no error", line)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			w.t.Errorf("%s: does not say %q:\n%s", line, word, stderr)
		}
	}
}

func (w *world) mkdir(names ...string) {
	w.t.Helper()
	for _, n := range names {
		if err := os.MkdirAll(w.path(n), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
}

// wantNothingLeft looks for what tools that have ended should have removed.
func (w *world) wantNothingLeft() {
	left, err := os.ReadDir(w.path("data/run/snapfaas"))
	if err != nil {
		w.t.Error(err)
	}
	for _, e := range left {
		if e.IsDir() {
			w.t.Errorf("the folder of a tool is left: %s", e.Name())
		}
	}
	found, err := skeptest.Leftovers(w.path("data"), "none")
	if err != nil {
		w.t.Error(err)
	}
	for _, f := range found {
		w.t.Errorf("left behind: %s", f)
	}
}

const (
	requests = "{\"name\":\"Ann\"}\n{\"payload\":{\"name\":\"Bo\"}}\n"
	answers  = "{\"message\":\"hello, Ann\"}\n{\"message\":\"hello, Bo\"}\n"
)

var timing = regexp.MustCompile(`(?m)^request returned in: \d+ us`)

// wantAnswers runs a line with two requests.
func (w *world) wantAnswers(line string, phases ...string) {
	w.t.Helper()
	stdout, stderr := w.run(requests, line)
	if stdout != answers {
		w.t.Errorf("%s: answered %q, want %q", line, stdout, answers)
	}
	if n := len(timing.FindAllString(stderr, -1)); n != 2 {
		w.t.Errorf("%s: the times of %d requests are printed", line, n)
	}
	for _, p := range append(phases, "VM creation: ", "guest connected: ", "VM ready in: ", "Total requests: 2, Total responses: 2", "Shutting down vm...") {
		if !strings.Contains(stderr, p) {
			w.t.Errorf("%s: does not print %q:\n%s", line, p, stderr)
		}
	}
}

func TestWalkthrough(t *testing.T) {
	w := newWorld(t)
	functions, err := filepath.Abs("../../functions/snapfaas")
	if err != nil {
		t.Fatal(err)
	}

	// Build File Systems
	w.mkdir("rootfs", "appfs")
	w.run("", "skep runtime build python3 rootfs/python3.ext4")
	w.run("", "skep app build "+functions+"/hello-python3 appfs/hello-python3.ext2")
	w.run("", "skep app empty appfs/empty.ext2")

	kernel, err := guestkernel.Finder{}.Find()
	if err != nil {
		t.Fatal(err)
	}
	machine := " --kernel " + kernel.Image + " --rootfs rootfs/python3.ext4 --mem_size 128 --vcpu_count 1"
	const hello = " --appfs appfs/hello-python3.ext2"
	// With the app inside, for fullapp snapshots.
	w.run("", "skep runtime build python3 rootfs/fullapp.ext4 --app "+functions+"/hello-python3")
	full := strings.Replace(machine, "python3.ext4", "fullapp.ext4", 1)
	t.Run("gvisor", func(t *testing.T) {
		w := *w
		w.t = t
		w.onGVisor(machine, full, hello)
	})
	// The same app elsewhere, as the README has it, and in other file systems.
	w.mkdir("snapfaas-images/appfs/hellopy2")
	const moved = " --appfs snapfaas-images/appfs/hellopy2/output.ext2"
	if b, err := os.ReadFile(w.path("appfs/hello-python3.ext2")); err != nil || os.WriteFile(w.path(strings.Fields(moved)[1]), b, 0o644) != nil {
		t.Fatal("cannot copy the app's image: ", err)
	}
	testenv.Tool(t, "mkfs.ext4", "e2fsprogs")
	for _, kind := range []string{"ext2", "ext4"} {
		if out, err := exec.Command("mkfs."+kind, "-q", "-d", functions+"/hello-python3", w.path("appfs/real."+kind), "1M").CombinedOutput(); err != nil {
			t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
		}
	}
	w.write("other/workload.py", "def handle(obj):\n    return 'other'\n")
	w.run("", "skep app build other appfs/other")

	// Basic Usage
	w.wantAnswers("singlevm"+machine+hello, "app loaded: ")

	// Generate snapshots
	w.fails("singlevm"+machine+" --dump_dir snapshot/none --force_exit", "--dump_dir", "mkdir")
	w.mkdir("snapshot/python3", "snapshot/diff/hello-python3", "snapshot/diff/second")
	// A language snapshot, and the same with the placeholder in its place.
	w.run("", "singlevm"+machine+" --dump_dir snapshot/python3 --force_exit")
	w.wantAnswers("singlevm"+machine+" --appfs appfs/real.ext2 --load_dir snapshot/python3", "restore memory: ", "app loaded: ")
	w.run("", "singlevm"+machine+" --appfs appfs/empty.ext2 --dump_dir snapshot/python3 --force_exit")
	w.run("", "singlevm"+machine+hello+" --load_dir snapshot/python3 --dump_dir snapshot/diff/hello-python3 --force_exit")
	const base = " --load_dir snapshot/python3"
	const diff = base + " --diff_dirs snapshot/diff/hello-python3"

	w.fails("singlevm"+machine+hello+diff+" --load_ws", "working set", "--dump_ws")
	w.wantAnswers("singlevm" + machine + hello + diff + " --dump_ws snapshot/diff/hello-python3")
	w.wantAnswers("singlevm" + machine + moved + diff + " --load_ws")
	if stdout, stderr, err := w.try("", "singlevm"+machine+hello+diff+" --dump_ws"); err == nil || !strings.Contains(stderr, "--dump_ws: nothing was recorded") {
		t.Errorf("--dump_ws without a request: %v\n%s%s", err, stdout, stderr)
	}

	// Use snapshots
	w.wantAnswers("singlevm"+machine+" --appfs appfs/real.ext4"+base, "restore memory: ", "app loaded: ")
	w.wantAnswers("singlevm"+machine+moved+diff+" --copy_diff", "restore memory: ")
	// With other spellings, and what has no effect here.
	w.wantAnswers("singlevm -k "+kernel.Image+" -r rootfs/python3.ext4 --memory 128 --vcpu 1 --firerunner bin/firerunner"+
		" --tap tap0 --mac 06:00:00:00:00:01 --vsock_cid 3 --odirect_base -c quiet"+hello+
		" --load-dir snapshot/python3,snapshot/diff/hello-python3 --copy_diff_memory",
		"--tap has no effect", "--mac has no effect", "--vsock_cid has no effect", "--odirect_base has no effect", "--kernel_args has no effect")

	// A fullapp snapshot of a machine that goes on, and its working set (REAP).
	w.mkdir("snapshot/fullapp")
	w.wantAnswers("singlevm"+full+" --dump_dir snapshot/fullapp", "snapshot saved: ")
	w.wantAnswers("singlevm" + full + " --load_dir snapshot/fullapp --dump_ws=snapshot/fullapp")
	w.wantAnswers("singlevm"+full+" --load_dir snapshot/fullapp --load_ws --copy_diff=false", "restore memory: ")
	w.wantAnswers("singlevm"+machine+hello+" --load_dir snapshot/python3,snapshot/diff/hello-python3 --copy_base", "restore memory: ")

	// A diff on a diff, and its working set.
	w.run("", "singlevm"+machine+hello+diff+" --dump_dir snapshot/diff/second --force_exit")
	const second = base + " --diff_dirs snapshot/diff/hello-python3,snapshot/diff/second"
	w.wantAnswers("singlevm" + machine + hello + second + " --dump_ws")
	w.wantAnswers("singlevm" + machine + hello + second + " --load_ws")
	w.wantAnswers("singlevm"+machine+hello+second+" --copy_diff=false", "each page is read when it is touched first")
	w.badLines("singlevm" + machine + hello + second)

	for _, bad := range []struct {
		line  string
		words []string
	}{
		{"singlevm --rootfs rootfs/python3.ext4 --mem_size 256" + diff, []string{"does not fit", "--mem_size was 128 and is 256"}},
		{"singlevm" + machine + " --appfs appfs/other" + diff, []string{"--appfs: the snapshot has another app", "appfs/other is not the image that the snapshot has at /srv"}},
		{"singlevm" + machine + " --load_dir snapshot/diff/hello-python3", []string{"it is a diff", "--load_dir BASE,DIFF"}},
		{"singlevm" + machine + " --load_dir snapshot", []string{"no snapshot in it"}},
		{"singlevm" + machine + " --copy_diff", []string{"--copy_diff", "needs --load_dir"}},
		{"singlevm --rootfs rootfs/none", []string{"--rootfs", "no such file"}},
		{"singlevm" + machine + hello + diff + " --dump_ws snapshot/python3", []string{"--dump_ws", "snapshot/python3 is not the newest folder"}},
		{"singlevm" + machine + hello + base + " --load_ws", []string{"working set: there is none", "--dump_ws"}},
		{"singlevm" + machine + hello + base + " --dump_dir snapshot/python3", []string{"--dump_dir", "snapshot/python3 is loaded, too"}},
		{"singlevm" + machine + base + ",snapshot/diff/second", []string{"--load_dir", "a diff of another base"}},
		{"singlevm" + machine + base + " --force_exit", []string{"--force_exit", "needs --dump_dir"}},
		{"singlevm" + machine + base, []string{"there is no app", "--appfs"}},
		{"singlevm" + machine + " --appfs appfs/none.ext2", []string{"--appfs", "no such file"}},
		{"singlevm" + machine + " --mem_size 8", []string{"--mem_size: 8 MB is not between"}},
		{"singlevm" + machine + " --id a/b", []string{"--id", "is not a name"}},
		{"singlevm" + machine + " --accel fast", []string{"--accel", "auto, kvm, tcg"}},
		{"skep runtime build perl rootfs/perl", []string{"unknown runtime", "python3, nodejs, go, java"}},
		{"skep runtime build python3", []string{"the runtime and the file to write"}},
		{"skep runtime build python3 none/python3", []string{"output", "no such file"}},
		{"skep app build none appfs/x", []string{"app folder", "no such file"}},
		{"skep app build rootfs appfs/x", []string{"no workload.py"}},
		{"skep app bild", []string{"unknown command"}},
		{"skep network taps many", []string{"not a number from 1"}},
		{"multivm --config none.yaml --mem 128 --listen 0", []string{"--config", "no such file"}},
	} {
		w.fails(bad.line, bad.words...)
	}

	w.probes(machine, base)
	w.cluster(yaml)
}

// badLines sends lines that are no requests among others, which are answered.
func (w *world) badLines(line string) {
	w.t.Helper()
	stdout, stderr, err := w.try("{\"name\":\"Ann\"}\nnot JSON\n{\"name\":\n{\"payload\":{\"name\":\"Bo\"}}", line)
	if err == nil || stdout != answers {
		w.t.Errorf("answers to lines some of which are bad: %q, %v", stdout, err)
	}
	for _, want := range []string{"line 2: it is not JSON", "line 3: it is not JSON", "2 of 4 requests failed"} {
		if !strings.Contains(stderr, want) {
			w.t.Errorf("bad lines: %q is not said:\n%s", want, stderr)
		}
	}
}

const yaml = `
allow_network: false
firerunner_path: ./bin/firerunner
runtimefs_dir: ./rootfs
appfs_dir: ./appfs
snapshot_dir: ./snapshot
functions:
  hello: {network: false, runtimefs: python3.ext4, appfs: hello-python3.ext2, vcpus: 1, memory: 128,
          concurrency_limit: 4, load_dir: "python3,diff/hello-python3", copy_diff: true}
  other: {runtimefs: python3.ext4, appfs: hello-python3.ext2, memory: 128, load_dir: python3}
  large: {runtimefs: python3.ext4, memory: 4096}
`

// cluster is Cluster Mode.
func (w *world) cluster(yaml string) {
	t := w.t
	w.write("controller.yaml", yaml)
	w.write("bad.yaml", "functions: {hello: {runtimefs: rootfs/python3.ext4, colour: red}}")
	w.fails("multivm --config bad.yaml --mem 128 --listen 0", "--config: bad.yaml: functions: hello", "\"colour\"", "concurrency_limit")
	w.write("bad.yaml", "functions: {hello: {runtimefs: rootfs/python3.ext4, memory: 8}}")
	w.fails("multivm --config bad.yaml --mem 128 --listen 0", "functions: hello: memory: 8 MB is not between")
	log, err := os.Create(w.path("multivm.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := w.command(ctx, "", "multivm --config controller.yaml --mem 256 --listen 0")
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("multivm ended with %v", err)
		}
		text, err := os.ReadFile(log.Name())
		if err != nil || !strings.Contains(string(text), "Total requests: ") || t.Failed() {
			t.Errorf("multivm's log: %v\n%s", err, text)
		}
	}()
	var addr string
	if _, err := fmt.Fscanf(out, "multivm: 3 functions, 256 MB, listening on %s\n", &addr); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ in, want string }{
		{`{"function":"hello","payload":{"name":"Ann"}}`, `{"status":{"SentToVM":"{\"message\":\"hello, Ann\"}"}}`},
		{`{"function":"hello","payload":{"name":"Bo"}}`, `{"status":{"SentToVM":"{\"message\":\"hello, Bo\"}"}}`},
		{`{"function":"other","payload":{}}`, `{"status":{"SentToVM":"{\"message\":\"hello, world\"}"}}`},
		{`{"function":"none","payload":{}}`, `{"status":"FunctionNotExist"`},
		{`{"function":"large","payload":{}}`, `{"status":"ResourceExhausted"`},
	} {
		if got := ask(ctx, t, addr, test.in); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: %s, want %s", test.in, got, test.want)
		}
	}
	// Two VMs fill the memory: a second one of hello takes the place of other's.
	done := make(chan string, 2)
	for range 2 {
		go func() { done <- ask(ctx, t, addr, `{"function":"hello","payload":{"name":"C"}}`) }()
	}
	for range 2 {
		if got := <-done; !strings.Contains(got, "hello, C") {
			t.Errorf("two at a time: %s", got)
		}
	}
	// A child that dies takes nobody with it.
	text, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, m := range regexp.MustCompile(`msg="VM ready" function=hello pid=(\d+)`).FindAllStringSubmatch(string(text), -1) {
		var pid int
		if _, err := fmt.Sscan(m[1], &pid); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	if killed == 0 {
		t.Error("no firerunner was there to be killed")
	}
	var got string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		// The first ones may still meet a VM that is about to be found dead.
		res, err := http.Post("http://"+addr+"/functions/hello", "application/json", strings.NewReader(`{"name":"D"}`))
		if err != nil {
			t.Fatal(err)
		}
		var reply struct{ Message string }
		err = json.NewDecoder(res.Body).Decode(&reply)
		res.Body.Close()
		if got = reply.Message; err == nil && got == "hello, D" {
			break
		}
	}
	if got != "hello, D" {
		t.Errorf("after the death of all firerunners: %q", got)
	}
}

// ask sends a message over a connection of its own.
func ask(ctx context.Context, t *testing.T, addr, message string) string {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	if err := frame.U64.Write(c, []byte(message)); err != nil {
		t.Error(err)
		return ""
	}
	got, err := frame.U64.Read(c)
	if err != nil {
		t.Error(err)
	}
	return string(got)
}
