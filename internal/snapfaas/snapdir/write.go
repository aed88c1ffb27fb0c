package snapdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// newPrefix is of folders with a snapshot that is not whole yet.
const newPrefix = ".new-"

// CheckDump says what is wrong with a folder that a snapshot is to be written
// to, by a machine that was made from the loaded ones: it still reads them.
func CheckDump(dir string, loaded []string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("--dump_dir: %w (it must exist: mkdir -p %s)", err, dir)
	case err != nil:
		return fmt.Errorf("--dump_dir: %w", err)
	case !st.IsDir():
		return fmt.Errorf("--dump_dir: %s is not a folder", dir)
	}
	for _, l := range loaded {
		// One that is not there is said by who opens it.
		if same, err := sameFolder(dir, l); err == nil && same {
			return fmt.Errorf("--dump_dir: %s is loaded, too, and a snapshot of what was loaded needs that: name another folder", dir)
		}
	}
	return nil
}

// sameFolder says if two paths are of one folder.
func sameFolder(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	y, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}

// Write fills the folder, which must exist, with a new snapshot: save is given
// an empty folder on the same disk for the driver's files. What was in the
// folder before is replaced, and so is what somebody who was killed left there.
// One that is written to by somebody else is refused.
func Write(dir string, m Meta, save func(dir string) error) (err error) {
	if err := CheckDump(dir, nil); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("--dump_dir: %w", err)
	}
	defer folder.Close() //nolint:errcheck // which unlocks it
	switch err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("--dump_dir: another snapshot is being written to %s", dir)
	case err != nil:
		return fmt.Errorf("--dump_dir: lock %s: %w", dir, err)
	}
	if err := removeHalves(dir); err != nil {
		return fmt.Errorf("--dump_dir: remove what an earlier one left: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, newPrefix)
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
	return replace(tmp, folder)
}

// removeHalves removes what was left by processes that were killed. The folder
// is locked: nobody is at it.
func removeHalves(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.IsDir() && strings.HasPrefix(f.Name(), newPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// replace moves the files of a whole snapshot into the folder. Whenever it is
// interrupted, be it by the machine's end, skep.json is there if and only if
// all that it speaks of is.
func replace(tmp string, folder *os.File) error {
	dir := folder.Name()
	files, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := syncFile(filepath.Join(tmp, f.Name())); err != nil {
			return err
		}
	}
	old, err := workingSets(dir)
	if err != nil {
		return err
	}
	for _, name := range append([]string{metaName}, old...) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := folder.Sync(); err != nil {
		return err
	}
	for _, f := range files {
		if f.Name() != metaName {
			if err := os.Rename(filepath.Join(tmp, f.Name()), filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	if err := folder.Sync(); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, metaName), filepath.Join(dir, metaName)); err != nil {
		return err
	}
	return folder.Sync()
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
