// Package snapdir is the folder of a snapshot, as SnapFaaS's tools have it: a
// path that a user names. It holds the driver's files, what the snapshot is and
// fits, and working sets:
//
//	skep.json     written last: without it there is no snapshot
//	memory, ...   the driver's
//	WS-ID         what the first request after a restore of snapshot ID needs
//	              (--dump_ws)
package snapdir

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// Names of files in the folder.
const (
	metaName = "skep.json"
	// setPrefix goes before the ID of the snapshot that a working set is of: it
	// holds pages, and would put them into any other one's memory.
	setPrefix = "WS-"
)

// idPattern is what an ID may be: it is part of a file's name.
var idPattern = regexp.MustCompile(`^[0-9a-z]{1,64}$`)

// version of skep.json.
const version = 1

// maxMeta bounds skep.json, in bytes.
const maxMeta = 1 << 20

// MaxLayers bounds how many diffs may lie on each other.
const MaxLayers = 16

// Machine is what a snapshot and the machine restored from it have in common.
type Machine struct {
	// Sandbox is the driver's name; "" is QEMU's, which was the only one.
	Sandbox   string                `json:"sandbox,omitempty"`
	MemoryMiB int64                 `json:"memoryMiB"`
	VCPUs     int64                 `json:"vcpus"`
	Rootfs    string                `json:"rootfs"` // fingerprint.File
	Driver    sandbox.Compatibility `json:"driver"`
}

// Meta is what skep.json says.
type Meta struct {
	Version int         `json:"version"`
	ID      string      `json:"id"`
	Base    string      `json:"base,omitempty"` // the ID of what a diff lies on
	Point   guest.Point `json:"point"`
	Machine Machine     `json:"machine"`
}

// Snapshot is a snapshot that was read: a base, or diffs on one.
type Snapshot struct {
	Meta // of the newest layer
	// Dirs are the folders, the newest first, absolute.
	Dirs []string
}

// Open reads the snapshot in the folders, the base first, and checks that
// they belong together.
func Open(dirs ...string) (*Snapshot, error) {
	if len(dirs) == 0 || len(dirs) > MaxLayers {
		return nil, fmt.Errorf("snapshot: %d folders, want 1 to %d", len(dirs), MaxLayers)
	}
	var s Snapshot
	for i, d := range dirs {
		abs, err := filepath.Abs(d)
		if err != nil {
			return nil, err
		}
		m, err := read(abs)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", d, err)
		}
		switch {
		case i == 0 && m.Base != "":
			return nil, fmt.Errorf("snapshot %s: it is a diff: name its base first, as in --load_dir BASE,DIFF", d)
		case i > 0 && m.Base == "":
			return nil, fmt.Errorf("snapshot %s: it is no diff, but a base itself", d)
		case i > 0 && m.Base != s.ID:
			return nil, fmt.Errorf("snapshot %s: it is a diff of another base than %s", d, dirs[i-1])
		}
		s.Meta, s.Dirs = *m, append([]string{abs}, s.Dirs...)
	}
	return &s, nil
}

func read(dir string) (*Meta, error) {
	f, err := os.Open(filepath.Join(dir, metaName))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("no snapshot in it: make one with --dump_dir (%s is missing)", metaName)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxMeta+1))
	if err != nil {
		return nil, err
	}
	return parse(b)
}

func parse(b []byte) (*Meta, error) {
	if len(b) > maxMeta {
		return nil, fmt.Errorf("%s is larger than %d bytes", metaName, maxMeta)
	}
	var m Meta
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", metaName, err)
	}
	switch {
	case m.Version != version:
		return nil, fmt.Errorf("%s: version %d, this Skep reads %d: make the snapshot again", metaName, m.Version, version)
	case !idPattern.MatchString(m.ID) || m.Base != "" && !idPattern.MatchString(m.Base):
		return nil, fmt.Errorf("%s: id, base: not those of a snapshot", metaName)
	case m.Point != guest.Language && m.Point != guest.App:
		return nil, fmt.Errorf("%s: point: %.40q is unknown", metaName, m.Point)
	}
	return &m, nil
}

func sandboxOf(m Machine) string { return cmp.Or(m.Sandbox, "qemu") }

// Fits says if the snapshot can be restored as machine m, and if not, why.
func (s *Snapshot) Fits(m Machine) error {
	var why []string
	differ := func(what string, was, is any) {
		if was != is {
			why = append(why, fmt.Sprintf("%s was %v and is %v", what, was, is))
		}
	}
	a, b := s.Machine, m
	if sandboxOf(a) != sandboxOf(b) {
		return fmt.Errorf("snapshot %s does not fit: it was made with --sandbox %s, this is %s", s.Dirs[0], sandboxOf(a), sandboxOf(b))
	}
	differ("--mem_size", a.MemoryMiB, b.MemoryMiB)
	differ("--vcpu_count", a.VCPUs, b.VCPUs)
	if a.Rootfs != b.Rootfs {
		why = append(why, "the root file system is another one")
	}
	differ(sandboxOf(a), a.Driver.Version, b.Driver.Version)
	if a.Driver.Kernel != b.Driver.Kernel {
		why = append(why, "the kernel is another one")
	}
	if a.Driver.Agent != b.Driver.Agent {
		why = append(why, "Skep's agent is another one: another version of Skep made it")
	}
	differ("the processor", a.Driver.CPUModel, b.Driver.CPUModel)
	if strings.Join(a.Driver.CPUFeatures, " ") != strings.Join(b.Driver.CPUFeatures, " ") {
		why = append(why, "the processor's features are others")
	}
	if len(why) > 0 {
		return fmt.Errorf("snapshot %s does not fit: %s", s.Dirs[0], strings.Join(why, "; "))
	}
	return nil
}

// WorkingSet is the path of the snapshot's working set, whether it is there or
// not: in the newest folder, and of no other snapshot than the one that is
// there now.
func (s *Snapshot) WorkingSet() string { return filepath.Join(s.Dirs[0], setPrefix+s.ID) }

// Image is the snapshot for the driver, with its working set if that is wanted.
func (s *Snapshot) Image(workingSet bool) (sandbox.Image, error) {
	i := sandbox.Image{Dirs: s.Dirs}
	if !workingSet {
		return i, nil
	}
	i.WorkingSet = s.WorkingSet()
	_, err := os.Stat(i.WorkingSet)
	switch {
	case err == nil:
		return i, nil
	case !errors.Is(err, os.ErrNotExist):
		return i, fmt.Errorf("working set: %w", err)
	}
	others, err := workingSets(s.Dirs[0])
	if err != nil {
		return i, fmt.Errorf("working set: %w", err)
	}
	if len(others) > 0 {
		return i, fmt.Errorf("working set: %s in %s is not of the snapshot that is there, %s: make it again with --dump_ws", others[0], s.Dirs[0], s.ID)
	}
	return i, fmt.Errorf("working set: there is none in %s: make it with --dump_ws", s.Dirs[0])
}

// workingSets are the names of all working sets in a folder, also of those that
// did not say what they are of.
func workingSets(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var sets []string
	for _, f := range files {
		if f.Name() == "WS" || strings.HasPrefix(f.Name(), setPrefix) {
			sets = append(sets, f.Name())
		}
	}
	return sets, nil
}

// CheckDumpSet says what is wrong with a folder that the working set is to be
// written to: it belongs into the newest one.
func (s *Snapshot) CheckDumpSet(dir string) error {
	same, err := sameFolder(dir, s.Dirs[0])
	if err != nil {
		return fmt.Errorf("--dump_ws: %w", err)
	}
	if !same {
		return fmt.Errorf("--dump_ws: %s is not the newest folder loaded, %s, whose memory the working set is of: name that, or none", dir, s.Dirs[0])
	}
	return nil
}
