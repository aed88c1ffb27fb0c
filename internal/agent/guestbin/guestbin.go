// Package guestbin holds the program skep-agent, to be started in micro-VMs.
package guestbin

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

//go:generate env CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o skep-agent ../../../cmd/skep-agent

// The README is there so that the pattern matches in a clean clone too.
//
//go:embed *
var files embed.FS

// ErrMissing says that this program was built without the agent.
var ErrMissing = errors.New("built without the guest agent: run make build")

// Agent returns the program.
func Agent() ([]byte, error) {
	b, err := files.ReadFile("skep-agent")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("embedded guest agent: %w", err)
	}
	return b, nil
}
