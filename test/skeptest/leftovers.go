package skeptest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Leftovers lists what a Skep with this data folder and NodeID has left on the
// machine: processes, mounts, cgroups, nftables tables, links, folders of
// sandboxes. It matches exactly, so that other Skeps do not matter.
func Leftovers(dir, nodeID string) ([]string, error) {
	var all []string
	var errs []error
	for _, find := range []func() ([]string, error){
		func() ([]string, error) { return processes(dir) },
		func() ([]string, error) { return mounts(dir) },
		func() ([]string, error) { return cgroups("skep-" + nodeID) },
		func() ([]string, error) { return tables("skep-" + nodeID) },
		func() ([]string, error) { return links("sk" + nodeID) },
		func() ([]string, error) { return files(filepath.Join(dir, "sandboxes")) },
		func() ([]string, error) { return files(filepath.Join(dir, "run", "networks")) },
	} {
		found, err := find()
		all, errs = append(all, found...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// LeftoversOf lists what is left of one sandbox of a Skep that runs.
func LeftoversOf(dir, nodeID, id string) ([]string, error) {
	var all []string
	var errs []error
	sandbox := filepath.Join(dir, "sandboxes", id)
	for _, find := range []func() ([]string, error){
		func() ([]string, error) { return processes(sandbox) },
		func() ([]string, error) { return mounts(sandbox) },
		func() ([]string, error) { return cgroups("skep-" + nodeID + "/" + id) },
		func() ([]string, error) { return files(sandbox) },
	} {
		found, err := find()
		all, errs = append(all, found...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// below reports whether a path is dir or below it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func processes(dir string) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.Name() == fmt.Sprint(os.Getpid()) || strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has just ended
		}
		for _, arg := range bytes.Split(cmdline, []byte{0}) {
			if a := string(arg); strings.Contains(a, dir+"/") || strings.HasSuffix(a, dir) {
				out = append(out, "process "+e.Name()+": "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
				break
			}
		}
	}
	return out, nil
}

func mounts(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && below(fields[4], dir) {
			out = append(out, "mount "+fields[4])
		}
	}
	return out, lines.Err()
}

func cgroups(name string) ([]string, error) {
	const root = "/sys/fs/cgroup"
	controllers, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	paths := []string{filepath.Join(root, name)}
	for _, c := range controllers {
		paths = append(paths, filepath.Join(root, c.Name(), name))
	}
	var out []string
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			out = append(out, "cgroup "+p)
		}
	}
	return out, nil
}

func tables(name string) ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	var out []string
	for _, t := range all {
		if t.Name == name {
			out = append(out, "nftables table "+name)
		}
	}
	return out, nil
}

func links(prefix string) ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []string
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			out = append(out, "link "+l.Attrs().Name)
		}
	}
	return out, nil
}

// files lists what is in a folder, which need not exist.
func files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, "file "+filepath.Join(dir, e.Name()))
	}
	return out, nil
}
