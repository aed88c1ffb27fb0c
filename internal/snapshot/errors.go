package snapshot

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound: the store has no such snapshot.
	ErrNotFound = errors.New("no such snapshot")
	// ErrAmbiguous: several snapshots begin with these digits.
	ErrAmbiguous = errors.New("several snapshots match")
	// ErrInUse: children refer to the snapshot, or somebody reads it.
	ErrInUse = errors.New("snapshot is in use")
	// ErrBusy: another process is changing the store; try again later.
	ErrBusy = errors.New("snapshot store is busy")
	// ErrLost: the lease of a creation ran out before it was committed, so
	// that what it wrote may have been collected already.
	ErrLost = errors.New("lease of the snapshot's creation was lost")
	// ErrDamaged: what is stored is not what was written. Its kinds follow.
	ErrDamaged = errors.New("snapshot is damaged")
	// ErrForeign: it is as it was written, by another version of this program.
	// It is of no use here, and left alone.
	ErrForeign = errors.New("snapshot is of another version")
)

// Kind says in which way an object is not what it should be.
type Kind string

// Kinds of damage.
const (
	Missing   Kind = "missing"   // not there at all
	Truncated Kind = "truncated" // shorter than it says it is
	Corrupt   Kind = "corrupt"   // other content than its name promises
	Foreign   Kind = "foreign"   // of a format or version that we do not know
)

// DamageError tells of one object that cannot be used. It is ErrDamaged or, if
// its Kind is Foreign, ErrForeign.
type DamageError struct {
	Object string // name in the backend
	Kind   Kind
	Reason string
	Err    error // may be nil
}

func (e *DamageError) Error() string {
	s := fmt.Sprintf("%s is %s", e.Object, e.Kind)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is find both ErrDamaged, or ErrForeign, and the cause.
func (e *DamageError) Unwrap() []error {
	is := ErrDamaged
	if e.Kind == Foreign {
		is = ErrForeign
	}
	if e.Err == nil {
		return []error{is}
	}
	return []error{is, e.Err}
}
