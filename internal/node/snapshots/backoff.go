package snapshots

import "time"

// Failures in a row make pauses, so that what cannot be saved or restored does
// not cost every start its time again.
const (
	firstPause = 10 * time.Second
	maxPause   = time.Hour
	// giveUp is after how many failures in a row a snapshot that is whole but
	// does not restore is removed.
	giveUp = 3
)

// backoff counts failures in a row. It reads no clock.
type backoff struct {
	failures int
	until    time.Time
}

// failed notes a failure.
func (b *backoff) failed(now time.Time) {
	b.until = now.Add(min(firstPause<<min(b.failures, 12), maxPause))
	b.failures++
}

// blocked tells whether it is too early to try again.
func (b *backoff) blocked(now time.Time) bool { return now.Before(b.until) }

func (b *backoff) worked() { *b = backoff{} }
