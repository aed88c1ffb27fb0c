// Package snapdir is the folder of a snapshot, as SnapFaaS's tools have it: a
// path that a user names. It holds the driver's files, what the snapshot is and
// fits, and working sets:
//
//	skep.json     written last: without it there is no snapshot
//	memory, ...   the driver's
//	WS            what the first request after a restore needs (--dump_ws)
package snapdir

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// Names of files in the folder.
const (
	metaName   = "skep.json"
	WorkingSet = "WS"
)

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
	Rootfs    string                `json:"rootfs"` // Fingerprint
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
	case m.ID == "" || len(m.ID) > 64 || len(m.Base) > 64:
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

// Image is the snapshot for the driver, with its working set if that is wanted.
func (s *Snapshot) Image(workingSet bool) (sandbox.Image, error) {
	i := sandbox.Image{Dirs: s.Dirs}
	if workingSet {
		i.WorkingSet = filepath.Join(s.Dirs[0], WorkingSet)
		if _, err := os.Stat(i.WorkingSet); err != nil {
			return i, fmt.Errorf("working set: %w (make it with --dump_ws)", err)
		}
	}
	return i, nil
}

// CheckDump says what is wrong with a folder that a snapshot is to be written to.
func CheckDump(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("--dump_dir: %w (it must exist: mkdir -p %s)", err, dir)
	case err != nil:
		return fmt.Errorf("--dump_dir: %w", err)
	case !st.IsDir():
		return fmt.Errorf("--dump_dir: %s is not a folder", dir)
	}
	return nil
}

// Write fills the folder, which must exist, with a new snapshot: save is given
// an empty folder on the same disk for the driver's files. What was in the
// folder before is replaced.
func Write(dir string, m Meta, save func(dir string) error) (err error) {
	if err := CheckDump(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return fmt.Errorf("--dump_dir: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := save(tmp); err != nil {
		return err
	}
	m.Version = version
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, metaName), b, 0o644); err != nil {
		return err
	}
	return replace(tmp, dir)
}

// replace moves the files of a whole snapshot into the folder, skep.json last.
func replace(tmp, dir string) error {
	for _, old := range []string{metaName, WorkingSet} {
		if err := os.Remove(filepath.Join(dir, old)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	files, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Name() != metaName {
			if err := os.Rename(filepath.Join(tmp, f.Name()), filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return os.Rename(filepath.Join(tmp, metaName), filepath.Join(dir, metaName))
}

// Fingerprint tells files apart without reading large ones as a whole: their
// size, and blocks from all over them. It is no proof against a forger.
func Fingerprint(path string) (string, error) {
	const block, samples = 4096, 256
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a file", path)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", st.Size())
	blocks := (st.Size() + block - 1) / block
	buf := make([]byte, block)
	last := int64(-1)
	for i := int64(0); i < samples && blocks > 0; i++ {
		at := i * (blocks - 1) / (samples - 1)
		if at == last {
			continue
		}
		last = at
		n, err := f.ReadAt(buf, at*block)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		h.Write(buf[:n])
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
