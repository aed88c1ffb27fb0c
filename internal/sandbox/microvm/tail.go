package microvm

import (
	"strings"
	"sync"
)

// maxMessages bounds what is kept of a monitor's own messages, in bytes.
const maxMessages = 4 << 10

// tailBuffer keeps the last bytes written to it. It is safe for concurrent use.
type tailBuffer struct {
	mu sync.Mutex
	b  []byte
}

// Write never fails.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > maxMessages {
		t.b = append([]byte(nil), t.b[len(t.b)-maxMessages:]...)
	}
	return len(p), nil
}

// String is what was kept, in one line.
func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ReplaceAll(string(t.b), "\n", " "))
}
