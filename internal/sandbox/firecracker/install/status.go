package install

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// recordFile is beside the programs and says of which release they are.
const recordFile = "firecracker.release"

// maxRecord bounds it, in bytes.
const maxRecord = 4096

// record is its content.
type record struct {
	Version  string            `json:"version"`
	Archive  string            `json:"archive"`  // its SHA-256
	Programs map[string]string `json:"programs"` // their SHA-256
}

// Status is what is known of the programs in a folder.
type Status struct {
	Missing []string // those that are not there
	Release string   // the one that was installed; "" if nobody knows
	Changed []string // those that are not as they were installed
	Current bool     // all are there, unchanged, and of the wanted release
}

// String says it in a few words.
func (s Status) String() string {
	switch {
	case len(s.Missing) > 0:
		return "not found: " + strings.Join(s.Missing, ", ")
	case s.Release == "":
		return "put there by hand, of a release that is not known"
	case len(s.Changed) > 0:
		return fmt.Sprintf("not as %s was installed: %s", s.Release, strings.Join(s.Changed, ", "))
	}
	return s.Release
}

// Status compares the programs that are there with what was installed, and
// with the release.
func (p Programs) Status() Status {
	var s Status
	sums := map[string]string{}
	for _, name := range programs {
		sum, err := sumOf(filepath.Join(p.Dir, name))
		if err != nil {
			s.Missing = append(s.Missing, name)
			continue
		}
		sums[name] = sum
	}
	var r record
	f, err := os.Open(filepath.Join(p.Dir, recordFile))
	if err != nil {
		return s
	}
	defer f.Close() //nolint:errcheck // read only
	if json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(&r) != nil {
		return s
	}
	s.Release = r.Version
	for _, name := range programs {
		if sums[name] != "" && sums[name] != r.Programs[name] {
			s.Changed = append(s.Changed, name)
		}
	}
	s.Current = len(s.Missing) == 0 && len(s.Changed) == 0 && r.Version == p.Release.Version && r.Archive == p.Release.SHA256
	return s
}

// writeRecord notes what was installed from a folder.
func (p Programs) writeRecord(dir string) error {
	r := record{Version: p.Release.Version, Archive: p.Release.SHA256, Programs: map[string]string{}}
	for _, name := range programs {
		var err error
		if r.Programs[name], err = sumOf(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, recordFile), append(b, '\n'), 0o644)
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
