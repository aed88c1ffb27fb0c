package snapshots

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// print tells a file from one that was changed: nobody can write to a file
// and keep its change time.
type print struct {
	Size  int64  `json:"size"`
	Inode uint64 `json:"inode"`
	MTime int64  `json:"mtime"` // ns
	CTime int64  `json:"ctime"` // ns
}

// examine notes what files a copy consists of.
func (c *Catalog) examine(l *local) error {
	l.rec.Files, l.rec.Bytes = map[string]print{}, 0
	root := c.dir(l)
	entries, err := os.ReadDir(filepath.Join(root, imageDir))
	if err != nil {
		return err
	}
	names := make([]string, 0, len(entries)+1)
	for _, e := range entries {
		if !e.Type().IsRegular() || !plainName(e.Name()) {
			return fmt.Errorf("the driver wrote %q, which is no plain file", e.Name())
		}
		names = append(names, filepath.Join(imageDir, e.Name()))
	}
	if len(names) == 0 || len(names) > maxFiles {
		return fmt.Errorf("the driver wrote %d files", len(names))
	}
	if l.rec.WorkingSet != "" {
		names = append(names, l.rec.WorkingSet)
	}
	for _, name := range names {
		p, bytes, err := printOf(filepath.Join(root, name))
		if err != nil {
			return err
		}
		l.rec.Files[name] = p
		l.rec.Bytes += bytes
	}
	return nil
}

const maxFiles = 32

// plainName tells whether a name from outside is that of a file in a folder.
func plainName(name string) bool {
	return name != "" && len(name) <= 100 && name[0] != '.' && !strings.ContainsAny(name, "/\x00") && name != roleWorkingSet
}

func printOf(path string) (p print, bytes int64, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return p, 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return p, 0, fmt.Errorf("%s is no regular file", path)
	}
	return print{Size: st.Size, Inode: st.Ino, MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano()}, st.Blocks * 512, nil
}

// intact says whether the files of a copy and its parents are those that were
// written. The caller holds mu.
func (c *Catalog) intact(l *local) error {
	parents := c.parents(l)
	if len(parents) != len(l.rec.Parents) {
		return errors.New("what the snapshot differs from is gone")
	}
	for _, x := range append(parents, l) {
		if err := c.own(x); err != nil {
			return err
		}
	}
	return nil
}

// own says whether a copy's own files are those that were written.
func (c *Catalog) own(l *local) error {
	for name, want := range l.rec.Files {
		have, _, err := printOf(filepath.Join(c.dir(l), name))
		if err != nil {
			return fmt.Errorf("a file of the snapshot: %w", err)
		}
		if have.Size != want.Size {
			return fmt.Errorf("a file of the snapshot, %s, has %d bytes instead of %d", name, have.Size, want.Size)
		}
		if have != want {
			return fmt.Errorf("a file of the snapshot, %s, was changed", name)
		}
	}
	return nil
}
