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

// Situation is what a Policy is asked about.
type Situation struct {
	Moment    Moment
	Responses uint64        // of this instance so far
	Uptime    time.Duration // since it was ready
	// Generation is that of the snapshot which the instance was restored from:
	// one of a booted instance has 1. 0: the instance itself was booted.
	Generation int
}

// Policy decides when a snapshot is made. It does no work and reads no clock.
type Policy interface {
	// String is the policy as ParsePolicy reads it.
	String() string
	// Save tells whether to make a snapshot now.
	Save(Situation) bool
	// Next is after how many responses in all to ask about AtResponse, given
	// how many there were; 0 means not again. The Moment says nothing.
	Next(Situation) uint64
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

// ParsePolicy reads a policy's name and argument, such as "after-n=10", or
// several with commas between: see stages.
func ParsePolicy(s string) (Policy, error) {
	parts := strings.Split(s, ",")
	if len(parts) == 1 {
		return parseOne(s)
	}
	if len(parts) > maxStages {
		return nil, fmt.Errorf("%.80q: at most %d snapshot policies can follow each other", s, maxStages)
	}
	var all stages
	for n, part := range parts {
		p, err := parseOne(part)
		if err != nil {
			return nil, err
		}
		if _, first := p.(afterReady); p == Policy(off{}) || first && n > 0 {
			return nil, fmt.Errorf("snapshot policy %q: %s cannot be there", s, part)
		}
		all = append(all, p)
	}
	return all, nil
}

func parseOne(s string) (Policy, error) {
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

// stages follow each other: the first is for instances that were booted, the
// next for those restored from the snapshot made then, and so on. With
// "after-ready,after-n=10" there is a snapshot before the first request, and a
// better one later.
type stages []Policy

const maxStages = 4

func (s stages) String() string {
	names := make([]string, 0, len(s))
	for _, p := range s {
		names = append(names, p.String())
	}
	return strings.Join(names, ",")
}

// at is the stage that decides, and the situation as it sees it.
func (s stages) at(x Situation) (Policy, Situation) {
	if x.Generation < 0 || x.Generation >= len(s) {
		return off{}, x
	}
	p := s[x.Generation]
	x.Generation = 0
	return p, x
}

func (s stages) Save(x Situation) bool {
	p, x := s.at(x)
	return p.Save(x)
}

func (s stages) Next(x Situation) uint64 {
	p, x := s.at(x)
	return p.Next(x)
}

type off struct{}

func (off) String() string        { return "off" }
func (off) Save(Situation) bool   { return false }
func (off) Next(Situation) uint64 { return 0 }

type afterReady struct{}

func (afterReady) String() string        { return "after-ready" }
func (afterReady) Save(s Situation) bool { return s.Moment == AtReady && s.Generation == 0 }
func (afterReady) Next(Situation) uint64 { return 0 }

// atScaleDown is what vHive does.
type atScaleDown struct{}

func (atScaleDown) String() string        { return "at-scale-down" }
func (atScaleDown) Save(s Situation) bool { return s.Moment == AtEnd && s.Generation == 0 }
func (atScaleDown) Next(Situation) uint64 { return 0 }

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

func (p afterN) Save(s Situation) bool {
	return s.Moment == AtResponse && s.Responses >= p.n && s.Generation == 0
}

func (p afterN) Next(s Situation) uint64 {
	if s.Generation > 0 {
		return 0
	}
	return max(p.n, s.Responses+1)
}

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
