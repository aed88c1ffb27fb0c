package firecracker

import "github.com/skep-dev/skep/internal/sandbox"

// Lose makes a machine forget what it has saved, as a save does that fails
// halfway: the next one writes all of its memory.
func Lose(s sandbox.Sandbox) {
	if r, is := s.(*recordedBox); is {
		s = r.box
	}
	s.(*box).lost = true
}

// FindProgram finds firecracker or jailer, as New does.
func FindProgram(name string) (string, error) { return findProgram(name, "") }
