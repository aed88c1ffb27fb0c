package pager

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// EventKind tells what happened to the served memory.
type EventKind uint8

// The kernel's event numbers.
const (
	EventFault  EventKind = 0x12
	EventRemove EventKind = 0x15
	EventUnmap  EventKind = 0x16
)

const (
	eventFork = 0x13

	faultFlagWrite        = 1 << 0
	faultFlagWriteProtect = 1 << 1
	faultFlagMinor        = 1 << 2

	messageSize = 32
	// maxMessages bounds one read. The kernel hands out faults before other
	// events, so a read must be able to take a fault of every busy thread.
	maxMessages = 64
)

// Event is one message of a userfaultfd.
type Event struct {
	Kind EventKind
	// Flags and Address belong to EventFault.
	Flags, Address uint64
	// Start and End are the bounds of EventRemove and EventUnmap.
	Start, End uint64
}

// eventReader holds the buffer for reads, reused.
type eventReader struct {
	buf [messageSize * maxMessages]byte
}

// read appends up to most messages that wait to events; none is not an error. ESRCH
// is never returned here: the kernel says nothing when the process has gone.
func (r *eventReader) read(u *UFFD, events []Event, most int) ([]Event, error) {
	n, err := unix.Read(u.fd, r.buf[:most*messageSize])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return events, nil
	case err != nil:
		return events, fmt.Errorf("read userfaultfd: %w", err)
	case n%messageSize != 0:
		return events, fmt.Errorf("read userfaultfd: %d bytes, not a multiple of %d", n, messageSize)
	}
	closeForked(r.buf[:n])
	for m := r.buf[:n]; len(m) > 0; m = m[messageSize:] {
		e, err := decodeEvent(m[:messageSize])
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
	return events, nil
}

// closeForked closes the descriptors that came with fork events. The process
// must not ask for these, but when it does they must not pile up here.
func closeForked(messages []byte) {
	for m := messages; len(m) > 0; m = m[messageSize:] {
		if m[0] == eventFork {
			_ = unix.Close(int(binary.NativeEndian.Uint32(m[8:])))
		}
	}
}

func decodeEvent(m []byte) (Event, error) {
	le := binary.NativeEndian
	e := Event{Kind: EventKind(m[0])}
	switch e.Kind {
	case EventFault:
		e.Flags, e.Address = le.Uint64(m[8:]), le.Uint64(m[16:])
	case EventRemove, EventUnmap:
		e.Start, e.End = le.Uint64(m[8:]), le.Uint64(m[16:])
	default:
		return Event{}, fmt.Errorf("userfaultfd event %#x is not handled: the process asked for events it must not", m[0])
	}
	return e, nil
}
