package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// linger is how long the machine may take to forget what was removed: a dead
// process to be waited for, a namespace to be freed.
const linger = 5 * time.Second

// checkGone checks that nothing of the sandbox is left but files in its
// directory. Everything is matched by the sandbox's own ID or paths.
func (b *box) checkGone(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(t, linger))
	defer cancel()
	if err := poll(ctx, func() error { return leftBehind(b.spec.State()) }); err != nil {
		t.Errorf("left behind by sandbox %s: %v", b.spec.ID, err)
	}
}

func leftBehind(s sandbox.State) error {
	var errs []error
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.ID) || mentions(strings.Fields(line), s.Dir) {
			errs = append(errs, fmt.Errorf("mount: %s", strings.TrimSpace(line)))
		}
	}
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		return err
	}
	if g.Exists() {
		pids, err := g.Procs()
		errs = append(errs, fmt.Errorf("cgroup: %s with processes %v", s.Cgroup, pids), err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	self := fmt.Sprintf("/proc/%d", os.Getpid())
	for _, p := range procs {
		if p == self {
			errs = append(errs, openFiles(p, s.Dir))
		} else if why := belongs(p, s, g); why != "" {
			errs = append(errs, fmt.Errorf("process %s: %s", filepath.Base(p), why))
		}
	}
	return errors.Join(errs...)
}

// mentions says if a word is dir or something below it.
func mentions(words []string, dir string) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		return w == dir || strings.HasPrefix(w, dir+"/")
	})
}

// belongs says why a process is a sandbox's, "" if it is not.
func belongs(proc string, s sandbox.State, g *cgroup.Group) string {
	cmdline, _ := os.ReadFile(proc + "/cmdline")
	words := strings.ReplaceAll(string(cmdline), "\x00", " ")
	if strings.Contains(words, s.ID) {
		return "its command line is " + words
	}
	for _, l := range []string{"exe", "cwd", "root"} {
		target, _ := os.Readlink(proc + "/" + l)
		if strings.Contains(target, s.ID) {
			return "its " + l + " is " + target
		}
	}
	cg, _ := os.ReadFile(proc + "/cgroup")
	if g.Contains(string(cg)) {
		return "it is in cgroup " + s.Cgroup
	}
	return ""
}

// openFiles says what files below dir a process holds open.
func openFiles(proc, dir string) error {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return err
	}
	var errs []error
	for _, fd := range fds {
		target, _ := os.Readlink(proc + "/fd/" + fd.Name())
		if mentions([]string{target}, dir) {
			errs = append(errs, fmt.Errorf("open file: %s", target))
		}
	}
	return errors.Join(errs...)
}

// namespaceIDs are the inode numbers of a link's network namespaces.
func namespaceIDs(t testing.TB, link sandbox.Link) []string {
	t.Helper()
	var ids []string
	for _, path := range []string{link.NetNS, link.DialNS} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Errorf("the link's network namespace is gone before it was released: %v", err)
			continue
		}
		ids = append(ids, fmt.Sprintf("net:[%d]", st.Ino))
	}
	return ids
}

// checkNamespaces checks that no thread of the machine is in one of the
// namespaces, and that this process holds none open. While other sandboxes
// run, the kernel may not give the same number to a new one.
func checkNamespaces(t testing.TB, ids []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(t, linger))
	defer cancel()
	err := poll(ctx, func() error {
		var errs []error
		for _, pattern := range []string{"/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/self/fd/[0-9]*"} {
			links, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			for _, l := range links {
				if target, _ := os.Readlink(l); slices.Contains(ids, target) {
					errs = append(errs, fmt.Errorf("%s is %s", l, target))
				}
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Errorf("left behind in the network namespace: %v", err)
	}
}

// checkMachine checks, when all sandboxes are gone, what cannot be told to
// one of them: dead children that nobody waited for, loop devices.
func checkMachine(t testing.TB, s *suite) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(t, linger))
	defer cancel()
	err := poll(ctx, func() error {
		var errs []error
		lists, err := filepath.Glob("/proc/self/task/[0-9]*/children")
		if err != nil {
			return err
		}
		for _, l := range lists {
			b, _ := os.ReadFile(l)
			for _, pid := range strings.Fields(string(b)) {
				stat, _ := os.ReadFile("/proc/" + pid + "/stat")
				if _, rest, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(rest, "Z") {
					errs = append(errs, fmt.Errorf("zombie: %s", stat))
				}
			}
		}
		backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			return err
		}
		for _, f := range backing {
			b, _ := os.ReadFile(f)
			if strings.HasPrefix(string(b), s.dir+"/") {
				errs = append(errs, fmt.Errorf("loop device: %s of %s", f, b))
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(mounts)) {
			if mentions(strings.Fields(line), s.dir) {
				errs = append(errs, fmt.Errorf("mount: %s", strings.TrimSpace(line)))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Errorf("left behind: %v", err)
	}
}
