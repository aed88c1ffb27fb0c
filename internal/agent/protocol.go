// Package agent is the protocol between the host and skep-agent, PID 1 of a
// micro-VM: its limits, the agent's end (Server) and the host's (Client).
//
// It is ttrpc over a TCP connection on the link between host and guest. The
// agent listens on one port and answers only to the host's address on that
// link. The first connection, which comes before anything of the function's
// runs, sets a secret that every later one must present: so neither a function
// that forges addresses nor anything else behind the link can command the
// agent, and the secret is in no file, command line or environment; but a snapshot
// has it, until the first connection after a restore replaces it.
package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// Version of the protocol. Host and guest must have the same.
const Version = "3"

// Port is the agent's TCP port. Functions cannot listen on it.
const Port = 10240

// ReadyMessage is what the agent prints on the console once it listens: the
// host waits for it instead of dialling a guest that is still booting.
const ReadyMessage = "skep-agent: listening"

// FailedMessage begins the line that the agent prints before it gives up.
const FailedMessage = "skep-agent: failed:"

// ErrTimer is why an agent gives up on a machine whose kernel measured wrong.
// That its text is on the console tells the host: the same machine, booted
// again, is as good as any.
var ErrTimer = errors.New("a timer is of no use")

// Limits of what either side accepts.
const (
	MaxChunk    = 64 << 10 // bytes of input or output in a message
	maxArgs     = 4096     // arguments, and environment variables
	maxStrings  = 1 << 20  // bytes in arguments and environment together
	maxPath     = 4096     // bytes of a path
	maxName     = 256      // bytes of a user name
	maxHostname = 64       // bytes, the kernel's own limit
	maxDNS      = 3        // what resolv.conf takes
	maxAmount   = 1 << 50  // bytes of memory or disk
	maxPIDs     = 1 << 22  // the kernel's own limit
	maxSignal   = 64       // the kernel's own limit
	maxExecs    = 128      // processes besides the function's at once
	maxDisks    = 16       // besides the root's
	longPoll    = 20 * time.Second
	handshake   = 20 * time.Second // emulated guests on busy processors are slow
)

// LongPoll is how long the agent holds a call that waits for something. The
// host then asks again.
const LongPoll = longPoll

// MaxDisks is how many disks a guest can have besides the root's.
const MaxDisks = maxDisks

// MaxExecs is how many processes can run beside the function's.
const MaxExecs = maxExecs

func invalid(field, format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "%s: %s", field, fmt.Sprintf(format, args...))
}

func checkProcess(p *agentpb.Process) error {
	if p == nil || len(p.Args) == 0 || p.Args[0] == "" {
		return invalid("process.args", "empty")
	}
	if len(p.Args) > maxArgs || len(p.Env) > maxArgs {
		return invalid("process", "more than %d arguments or variables", maxArgs)
	}
	total := 0
	for _, list := range [][]string{p.Args, p.Env} {
		for _, s := range list {
			total += len(s) + 1
			if hasNUL(s) {
				return invalid("process", "an argument or variable holds a NUL byte")
			}
		}
	}
	switch {
	case total > maxStrings:
		return invalid("process", "arguments and variables take %d bytes, the limit is %d", total, maxStrings)
	case len(p.Cwd) > maxPath || hasNUL(p.Cwd) || (p.Cwd != "" && !path.IsAbs(p.Cwd)):
		return invalid("process.cwd", "not an absolute path of at most %d bytes", maxPath)
	case len(p.User) > maxName || hasNUL(p.User):
		return invalid("process.user", "longer than %d bytes, or holds a NUL byte", maxName)
	}
	return nil
}

func checkConfigure(r *agentpb.ConfigureRequest) error {
	switch {
	case len(r.Hostname) > maxHostname || hasControl(r.Hostname):
		return invalid("hostname", "longer than %d bytes, or holds control characters", maxHostname)
	case len(r.Dns) > maxDNS:
		return invalid("dns", "more than %d resolvers", maxDNS)
	case r.DiskBytes > maxAmount || r.MemoryBytes > maxAmount:
		return invalid("disk_bytes, memory_bytes", "beyond %d", int64(maxAmount))
	case r.MachineId != "" && !isMachineID(r.MachineId):
		return invalid("machine_id", "not %d lower-case hexadecimal digits", 2*MachineIDSize)
	case r.Pids > maxPIDs:
		return invalid("pids", "beyond %d", maxPIDs)
	}
	for _, a := range append([]string{r.Address}, r.Dns...) {
		if a != "" && net.ParseIP(a) == nil {
			return invalid("address, dns", "%.64q is not an address", a)
		}
	}
	return nil
}

func hasNUL(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return true
		}
	}
	return false
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

func isMachineID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == MachineIDSize && s == strings.ToLower(s)
}
