package microvm

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/skep-dev/skep/internal/agent"
)

// Bounds of what is kept of a guest's console.
const (
	consoleLines = 40
	consoleLine  = 512 // bytes of a line
)

// kernelPanic begins what a Linux kernel says at its end.
const kernelPanic = "Kernel panic"

// console reads what the guest's kernel and agent print: to learn that the
// agent listens, and to explain why a guest ended.
type console struct {
	ready chan struct{} // closed when the agent listens
	done  chan struct{} // closed at the end

	mu    sync.Mutex
	why   string // the first line that says why the guest gave up
	lines []string
}

// readConsole reads r to its end, and closes it.
func readConsole(r io.ReadCloser) *console {
	c := &console{ready: make(chan struct{}), done: make(chan struct{})}
	go c.read(r)
	return c
}

// Ready is closed when the agent has said that it listens.
func (c *console) Ready() <-chan struct{} { return c.ready }

// Done is closed when all has been read.
func (c *console) Done() <-chan struct{} { return c.done }

func (c *console) read(r io.ReadCloser) {
	defer close(c.done)
	defer r.Close() //nolint:errcheck // read end of a pipe
	br := bufio.NewReaderSize(r, consoleLine)
	isReady := false
	for {
		line, err := br.ReadSlice('\n')
		if text := strings.TrimSpace(string(line)); text != "" {
			if text == agent.ReadyMessage {
				if !isReady {
					isReady = true
					close(c.ready)
				}
			} else {
				c.add(text)
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (c *console) add(line string) {
	// It goes to logs and terminals.
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(line, "?"))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == "" && (strings.Contains(line, agent.FailedMessage) || strings.Contains(line, kernelPanic)) {
		c.why = line
	}
	if len(c.lines) == consoleLines {
		c.lines = append(c.lines[:0], c.lines[1:]...)
	}
	c.lines = append(c.lines, line)
}

// Tail is what says why the guest ended: the agent's own words, a panic's first
// line, or else the last lines, in one.
func (c *console) Tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		return c.why
	}
	return strings.Join(c.lines[max(0, len(c.lines)-5):], " | ")
}

// BadTimer says if the agent gave up because of agent.ErrTimer.
func (c *console) BadTimer() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.why, agent.FailedMessage) && strings.Contains(c.why, agent.ErrTimer.Error())
}

// OutOfMemory says if the guest's kernel gave up for want of memory: its
// out-of-memory killer found nobody to kill, as the only one who could be was
// dying already and needed memory for that.
func (c *console) OutOfMemory() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.why, kernelPanic) &&
		(strings.Contains(c.why, "deadlocked on memory") || strings.Contains(c.why, "Out of memory"))
}
