package gateway

import "time"

// waiter is a request in a revision's queue.
type waiter struct {
	tried   []*instance // it will not be given these
	since   time.Time
	granted chan grant // buffered: the granting side never blocks

	queued     bool
	prev, next *waiter
}

// grant ends a waiter's wait.
type grant struct {
	inst *instance
	cfg  Revision
	err  error
}

// waitList is a first-in-first-out list with removal from the middle.
type waitList struct {
	first, last *waiter
	n           int
}

func (l *waitList) push(w *waiter) {
	w.queued, w.prev, w.next = true, l.last, nil
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	l.n++
}

// remove reports whether w was in the list.
func (l *waitList) remove(w *waiter) bool {
	if !w.queued {
		return false
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.queued, w.prev, w.next = false, nil, nil
	l.n--
	return true
}
