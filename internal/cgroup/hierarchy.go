package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// hierarchies is where cgroup file systems are mounted.
type hierarchies struct {
	unified string            // v2, if its controllers are in use; "" on v1 and on hybrid systems
	v1      map[string]string // mount point by controller
	mounts  []string          // all of them, also named and controller-less ones
}

func (h *hierarchies) v2() bool { return h.unified != "" }

// system finds the machine's hierarchies, once: they do not move.
var system = sync.OnceValues(func() (*hierarchies, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	h, err := parseMountinfo(string(b))
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: /proc/self/mountinfo: %w", err)
	}
	return h, nil
})

// parseMountinfo finds the hierarchies in the text of proc_pid_mountinfo(5).
func parseMountinfo(s string) (*hierarchies, error) {
	h := &hierarchies{v1: map[string]string{}}
	unified := ""
	for line := range strings.Lines(s) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		dir := unescape(l[4])
		if (r[0] != "cgroup" && r[0] != "cgroup2") || !filepath.IsAbs(dir) || slices.Contains(h.mounts, dir) {
			continue
		}
		h.mounts = append(h.mounts, dir)
		if r[0] == "cgroup2" {
			if unified == "" {
				unified = dir
			}
			continue
		}
		for _, o := range strings.Split(r[2], ",") {
			switch o {
			case "memory", "cpu", "cpuacct", "cpuset", "pids", "freezer":
				if h.v1[o] == "" {
					h.v1[o] = dir
				}
			}
		}
	}
	// A controller belongs to one version only; memory decides for all.
	if h.v1["memory"] == "" {
		h.unified = unified
	}
	if h.unified == "" && h.v1["memory"] == "" {
		return nil, errors.New("no cgroup file system with a memory controller is mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	return h, nil
}

// unescape undoes mountinfo's octal escapes of blanks and backslashes.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
