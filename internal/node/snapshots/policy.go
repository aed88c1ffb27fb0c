package snapshots

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Moment is a point in an instance's life at which a snapshot may be made.
type Moment int

// The moments.
const (
	AtReady    Moment = iota // it is ready and has had no request
	AtResponse               // it has just answered, and no request is at it
	AtEnd                    // it has had its last request and is to be stopped
)

// Situation is what a Policy is asked about. Only instances that were booted
// are asked about: a restored one has its snapshot.
type Situation struct {
	Moment    Moment
	Responses uint64        // of this instance so far
	Uptime    time.Duration // since it was ready
}

// Policy decides when a snapshot is made. It does no work and reads no clock.
type Policy interface {
	// String is the policy as ParsePolicy reads it.
	String() string
	// Save tells whether to make a snapshot now.
	Save(Situation) bool
	// Next is after how many responses in all to ask about AtResponse, given
	// how many there were; 0 means not again.
	Next(responses uint64) uint64
}

// DefaultPolicy is that of `skep up`: a snapshot is there before the first
// request is, and never has anything of a request in it.
var DefaultPolicy Policy = afterReady{}

// policies by name; each is made from what follows "=".
var (
	policiesMu sync.RWMutex
	policies   = map[string]func(arg string) (Policy, error){
		"off":                  plain(off{}),
		"after-ready":          plain(afterReady{}),
		"after-first-response": plain(afterN{1, "after-first-response"}),
		"at-scale-down":        plain(atScaleDown{}),
		"after-n":              parseAfterN,
	}
)

// RegisterPolicy adds a policy under a name, for which parse is called with
// what follows "=" in "name=argument". It is for experiments: call it from an
// init function.
func RegisterPolicy(name string, parse func(arg string) (Policy, error)) {
	policiesMu.Lock()
	defer policiesMu.Unlock()
	policies[name] = parse
}

// PolicyNames lists the policies.
func PolicyNames() []string {
	policiesMu.RLock()
	defer policiesMu.RUnlock()
	return slices.Sorted(maps.Keys(policies))
}

// ParsePolicy reads a policy's name and argument, such as "after-n=10".
func ParsePolicy(s string) (Policy, error) {
	name, arg, _ := strings.Cut(s, "=")
	policiesMu.RLock()
	parse := policies[name]
	policiesMu.RUnlock()
	if parse == nil {
		return nil, fmt.Errorf("%q is not a snapshot policy; there are %s", s, strings.Join(PolicyNames(), ", "))
	}
	p, err := parse(arg)
	if err != nil {
		return nil, fmt.Errorf("snapshot policy %q: %w", s, err)
	}
	return p, nil
}

func plain(p Policy) func(string) (Policy, error) {
	return func(arg string) (Policy, error) {
		if arg != "" {
			return nil, errors.New("takes no argument")
		}
		return p, nil
	}
}

type off struct{}

func (off) String() string       { return "off" }
func (off) Save(Situation) bool  { return false }
func (off) Next(_ uint64) uint64 { return 0 }

type afterReady struct{}

func (afterReady) String() string        { return "after-ready" }
func (afterReady) Save(s Situation) bool { return s.Moment == AtReady }
func (afterReady) Next(uint64) uint64    { return 0 }

// atScaleDown is what vHive does.
type atScaleDown struct{}

func (atScaleDown) String() string        { return "at-scale-down" }
func (atScaleDown) Save(s Situation) bool { return s.Moment == AtEnd }
func (atScaleDown) Next(uint64) uint64    { return 0 }

// afterN waits for caches, connections and compiled code to be there.
type afterN struct {
	n    uint64
	name string
}

const maxAfterN = 1_000_000

func parseAfterN(arg string) (Policy, error) {
	n, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || n == 0 || n > maxAfterN {
		return nil, fmt.Errorf("%q is not a number of responses from 1 to %d: write after-n=10", arg, maxAfterN)
	}
	return afterN{n, "after-n=" + strconv.FormatUint(n, 10)}, nil
}

func (p afterN) String() string { return p.name }

func (p afterN) Save(s Situation) bool { return s.Moment == AtResponse && s.Responses >= p.n }

func (p afterN) Next(responses uint64) uint64 { return max(p.n, responses+1) }

// Pool decides how many prepared sandboxes a revision has. It does no work
// and reads no clock.
type Pool interface {
	// String is the policy as ParsePool reads it.
	String() string
	// Size says how many, given when the latest starts were (oldest first).
	Size(now time.Time, starts []time.Time) int
}

// MaxPool bounds a revision's pool.
const MaxPool = 16

// ParsePool reads a fixed size, or "auto".
func ParsePool(s string) (Pool, error) {
	if s == "auto" {
		return Recent{Window: time.Minute, Max: 4}, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > MaxPool {
		return nil, fmt.Errorf("%q is neither auto nor a number from 0 to %d", s, MaxPool)
	}
	return Fixed(n), nil
}

// Fixed is a pool of always the same size.
type Fixed int

func (f Fixed) String() string { return strconv.Itoa(int(f)) }

// Size implements Pool.
func (f Fixed) Size(time.Time, []time.Time) int { return int(f) }

// Recent is a pool of as many as were started within the window: what comes
// in bursts is prepared for, and what is not used costs nothing.
type Recent struct {
	Window time.Duration
	Max    int
}

func (r Recent) String() string { return "auto" }

// Size implements Pool.
func (r Recent) Size(now time.Time, starts []time.Time) int {
	n := 0
	for _, at := range starts {
		if now.Sub(at) < r.Window {
			n++
		}
	}
	return min(n, r.Max)
}
