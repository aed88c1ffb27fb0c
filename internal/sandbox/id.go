package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
)

var idPattern = regexp.MustCompile(`^[0-9a-f]{16}$`)

// NewID returns a random sandbox ID.
func NewID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// Validate checks what every driver relies on. The error names the field.
func (s *Spec) Validate() error {
	switch {
	case !idPattern.MatchString(s.ID):
		return fmt.Errorf("sandbox spec: id: %q is not 16 lower-case hexadecimal digits", s.ID)
	case !filepath.IsAbs(s.Dir):
		return fmt.Errorf("sandbox spec: dir: %q is not absolute", s.Dir)
	case !filepath.IsAbs(s.Rootfs):
		return fmt.Errorf("sandbox spec: rootfs: %q is not absolute", s.Rootfs)
	case len(s.Process.Args) == 0:
		return fmt.Errorf("sandbox spec: process.args: empty; the image has neither entrypoint nor command")
	case s.Process.Cwd != "" && !filepath.IsAbs(s.Process.Cwd):
		return fmt.Errorf("sandbox spec: process.cwd: %q is not absolute", s.Process.Cwd)
	case !filepath.IsLocal(s.Cgroup) || filepath.Clean(s.Cgroup) != s.Cgroup || s.Cgroup == ".":
		return fmt.Errorf("sandbox spec: cgroup: %q is not a clean relative path", s.Cgroup)
	case s.Stdout == nil || s.Stderr == nil:
		return fmt.Errorf("sandbox spec: stdout, stderr: must be set")
	case s.Link.NetNS == "" || s.Link.DialNS == "" || s.Link.Interface == "":
		return fmt.Errorf("sandbox spec: link: netns, dialNS and interface must be set")
	}
	return nil
}

// State is what Driver.Reap needs.
func (s *Spec) State() State {
	return State{ID: s.ID, Dir: s.Dir, Cgroup: s.Cgroup}
}
