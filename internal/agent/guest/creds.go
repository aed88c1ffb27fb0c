package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// keptCaps is what a function running as root keeps: what the other drivers
// leave it too. Nothing of it reaches the kernel or the agent.
var keptCaps = map[uintptr]bool{
	unix.CAP_CHOWN: true, unix.CAP_DAC_OVERRIDE: true, unix.CAP_FOWNER: true, unix.CAP_FSETID: true,
	unix.CAP_KILL: true, unix.CAP_NET_BIND_SERVICE: true, unix.CAP_SETGID: true, unix.CAP_SETUID: true,
}

// confineThread takes from the calling thread, and from all processes it will
// start, what a function must not have. There is no way back.
func confineThread() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keptCaps[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // unknown to this kernel
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// maxDatabase bounds the image's passwd and group files.
const maxDatabase = 1 << 20

// openDatabase opens a file of the function's without trusting it: a FIFO
// must not make us wait, nor a device or an endless file be read.
func openDatabase(path string) (io.ReadCloser, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		_ = f.Close()
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.Join(errors.New("not a regular file"), err)}
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, maxDatabase), f}, nil
}

// resolveUser finds a user in the calling thread's root.
func resolveUser(spec string) (*user.ExecUser, error) {
	var passwd, group io.Reader
	for path, r := range map[string]*io.Reader{"/etc/passwd": &passwd, "/etc/group": &group} {
		f, err := openDatabase(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("user %q: %w", spec, err)
		}
		defer f.Close() //nolint:errcheck // read only
		*r = f
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	name, groupName, _ := strings.Cut(spec, ":")
	switch {
	case errors.Is(err, user.ErrNoPasswdEntries):
		return nil, fmt.Errorf("user %q not found in the image's /etc/passwd", name)
	case errors.Is(err, user.ErrNoGroupEntries):
		return nil, fmt.Errorf("group %q not found in the image's /etc/group", groupName)
	case err != nil:
		return nil, fmt.Errorf("user %q: %w", spec, err)
	}
	return u, nil
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func getenv(env []string, key string) (string, bool) {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(env[i], "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// withDefaults adds the variables that every process has.
func withDefaults(env []string, u *user.ExecUser) []string {
	env = append([]string(nil), env...)
	if _, ok := getenv(env, "PATH"); !ok {
		env = append(env, "PATH="+defaultPath)
	}
	if _, ok := getenv(env, "HOME"); !ok {
		env = append(env, "HOME="+u.Home)
	}
	if _, ok := getenv(env, "HOSTNAME"); !ok {
		if name, err := os.Hostname(); err == nil && name != "" {
			env = append(env, "HOSTNAME="+name)
		}
	}
	return env
}

// lookPath finds a program in the calling thread's root.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path, _ := getenv(env, "PATH")
	denied := false
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join("/", dir, name)
		fi, err := os.Stat(p)
		if err != nil || fi.IsDir() {
			continue
		}
		if fi.Mode()&0o111 != 0 {
			return p, nil
		}
		denied = true
	}
	if denied {
		return "", fmt.Errorf("exec: %q: %w", name, unix.EACCES)
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// execError explains why a program did not start. "No such file" is also what
// the kernel says of a missing interpreter.
func execError(name string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		if _, serr := os.Stat(name); serr == nil {
			return fmt.Errorf("exec: %q: its interpreter or loader is missing: %w", name, err)
		}
	}
	return fmt.Errorf("exec: %q: %w", name, err)
}
