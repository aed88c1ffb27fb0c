package guest

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/skep-dev/skep/internal/agent"
)

// stream keeps a process's output until the host has it. When it is full the
// pipe fills up, and the process waits.
type stream struct {
	mu      sync.Mutex
	buf     []byte // output from offset on
	offset  uint64
	end     bool
	changed chan struct{} // closed and replaced at every change
}

func newStream(r io.ReadCloser) *stream {
	s := &stream{changed: make(chan struct{})}
	go s.pump(r)
	return s
}

// endedStream is the output of a process whose output nobody wants.
func endedStream() *stream { return &stream{end: true, changed: make(chan struct{})} }

func (s *stream) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) pump(r io.ReadCloser) {
	defer r.Close() //nolint:errcheck // read end of a pipe
	chunk := make([]byte, agent.MaxChunk)
	for {
		room := s.waitRoom()
		n, err := r.Read(chunk[:room])
		s.mu.Lock()
		s.buf = append(s.buf, chunk[:n]...)
		s.end = err != nil
		s.notify()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *stream) waitRoom() int {
	for {
		s.mu.Lock()
		room, changed := agent.MaxChunk-len(s.buf), s.changed
		s.mu.Unlock()
		if room > 0 {
			return room
		}
		<-changed
	}
}

// close ends the stream for a process that is forgotten: the pump goes on
// until the pipe ends, into nothing.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += uint64(len(s.buf))
	s.buf = nil
	s.notify()
}

// written is the number of bytes so far.
func (s *stream) written() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offset + uint64(len(s.buf))
}

// read frees output before offset, and waits for some after it.
func (s *stream) read(ctx context.Context, offset uint64) (data []byte, end bool, err error) {
	for {
		s.mu.Lock()
		if offset < s.offset || offset > s.offset+uint64(len(s.buf)) {
			s.mu.Unlock()
			return nil, false, fmt.Errorf("output at offset %d is not here", offset)
		}
		if drop := offset - s.offset; drop > 0 {
			s.buf = append(s.buf[:0], s.buf[drop:]...)
			s.offset = offset
			s.notify()
		}
		data, end, changed := append([]byte(nil), s.buf...), s.end, s.changed
		s.mu.Unlock()
		if len(data) > 0 || end {
			return data, end, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false, nil
		}
	}
}
