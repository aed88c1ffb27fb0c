package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/serving"
)

// Config is everything `skep up` can be told. Every field has a flag and a
// key in the configuration file.
type Config struct {
	Data string // folder for all state
	Run  string // folder for sockets and the kubeconfig

	Listen         string // of the gateway
	APIListen      string // of the Kubernetes API
	RegistryListen string // of the image registry, loopback only
	MetricsListen  string // of /metrics and /healthz

	Sandbox      string // default driver, or auto
	Domain       string // below which services get their host names
	IdleAfter    time.Duration
	DrainTimeout time.Duration // for the requests that run at SIGTERM

	PoolSize   int          // networks kept ready
	Uplinks    netip.Prefix // addresses of the sandboxes' uplinks; zero means a free range
	Kernel     string       // of micro-VMs; empty means found
	Accel      string       // of QEMU: auto, kvm or tcg
	ImageBytes int64        // the largest root file system accepted
	StoreBytes int64        // what the image store may hold before it is collected

	// SnapshotProfile is one of Profiles, which says what the next two are; ""
	// is the first. Snapshots (nil: not given) and UPF are vHive's flags, which
	// mean other profiles: none, snapshots and reap.
	SnapshotProfile     string
	Snapshots           *bool
	UPF                 bool
	SnapshotPolicy      string // when one is made; "": as the profile says
	SnapshotRestoreMode string // whether and how memory comes back: auto, always, off or a mode; "": as the profile says
	SnapshotPool        string // sandboxes kept prepared for each revision: a number or auto
	SnapshotDiffs       int    // differences that may lie on a whole snapshot
	SnapshotWorkingSet  string // how recordings of working sets become one
	SnapshotPoolMemory  int64  // bytes that those may take, all together
	// SnapshotWait is how long a start waits for a snapshot from the store.
	SnapshotWait  time.Duration
	SnapshotLimit int64 // bytes of the store, and of the files to restore from
	// SnapshotStore is where snapshots are kept: a folder, or
	// s3://BUCKET/PREFIX?endpoint=URL; "" is a folder below Data.
	SnapshotStore string

	Firecracker FirecrackerConfig

	// InsecureRegistries are hosts that may be spoken to in plain HTTP.
	InsecureRegistries []string

	Log *slog.Logger
}

// maxSnapshotWait bounds SnapshotWait: who waits is a request.
const maxSnapshotWait = time.Minute

// DefaultConfig is the configuration of `skep up` without any flag.
func DefaultConfig() Config {
	return Config{
		Data: "/var/lib/skep", Run: "/run/skep",
		Listen: "127.0.0.1:8080", APIListen: "127.0.0.1:6443",
		RegistryListen: "127.0.0.1:5000", MetricsListen: "127.0.0.1:9090",
		Sandbox: "auto", Domain: "127.0.0.1.sslip.io",
		IdleAfter: 60 * time.Second, DrainTimeout: 30 * time.Second,
		PoolSize: 4,
		Accel:    "auto", ImageBytes: 8 << 30, StoreBytes: 32 << 30,
		SnapshotPool: "0", SnapshotDiffs: 2, SnapshotWorkingSet: string(snapshots.LastSet), SnapshotPoolMemory: node.DefaultPoolMemory, SnapshotWait: snapshots.DefaultPatience, SnapshotLimit: 16 << 30,
		Firecracker: FirecrackerConfig{Balloon: "off", DirtyTracking: true},
	}
}

// Drivers are the names that Config.Sandbox may have.
var Drivers = []string{"auto", "firecracker", "gvisor", "qemu", "runc"}

// Accels are what Config.Accel may be.
var Accels = []string{"auto", "kvm", "tcg"}

const minBytes = 1 << 20 // of ImageBytes and StoreBytes

// Validate names the first field that is wrong, and the fix.
func (c *Config) Validate() error {
	for _, a := range []struct{ flag, addr string }{
		{"listen", c.Listen}, {"api-listen", c.APIListen},
		{"registry-listen", c.RegistryListen}, {"metrics-listen", c.MetricsListen},
	} {
		host, port, err := net.SplitHostPort(a.addr)
		if err != nil {
			return fmt.Errorf("--%s: %q is not ADDRESS:PORT, such as 127.0.0.1:8080", a.flag, a.addr)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("--%s: %q is not a port", a.flag, port)
		}
		ip := net.ParseIP(host)
		if (a.flag == "registry-listen" || a.flag == "metrics-listen") && (ip == nil || !ip.IsLoopback()) {
			return fmt.Errorf("--%s: %q is not a loopback address: what it serves has no authentication", a.flag, host)
		}
	}
	if !slices.Contains(Drivers, c.Sandbox) {
		return fmt.Errorf("--sandbox: %q is not one of %v", c.Sandbox, Drivers)
	}
	if !slices.Contains(Accels, c.Accel) {
		return fmt.Errorf("--accel: %q is not one of %v", c.Accel, Accels)
	}
	if problems := validation.IsDNS1123Subdomain(c.Domain); len(problems) > 0 {
		return fmt.Errorf("--domain: %q is not a domain such as functions.example.com", c.Domain)
	}
	if c.DrainTimeout < 0 {
		return fmt.Errorf("--drain-timeout: %s is negative", c.DrainTimeout)
	}
	if c.ImageBytes < minBytes || c.StoreBytes < minBytes {
		return fmt.Errorf("--image-bytes %d, --store-bytes %d: at least %d are needed", c.ImageBytes, c.StoreBytes, minBytes)
	}
	if c.PoolSize < 0 || c.PoolSize > 256 {
		return fmt.Errorf("--pool-size: %d is not between 0 and 256", c.PoolSize)
	}
	if c.IdleAfter < time.Second {
		return fmt.Errorf("--idle-after: %s is less than 1s", c.IdleAfter)
	}
	if _, err := c.Firecracker.config(); err != nil {
		return err
	}
	if _, err := c.snapshotOptions(); err != nil {
		return err
	}
	if c.SnapshotDiffs < 0 || c.SnapshotDiffs > snapshots.MaxDiffs {
		return fmt.Errorf("--snapshot-diffs %d: it is a number from 0 to %d", c.SnapshotDiffs, snapshots.MaxDiffs)
	}
	if c.SnapshotPoolMemory < minBytes {
		return fmt.Errorf("--snapshot-pool-memory %d: at least %d are needed", c.SnapshotPoolMemory, minBytes)
	}
	if c.SnapshotWait <= 0 || c.SnapshotWait > maxSnapshotWait {
		return fmt.Errorf("--snapshot-wait %v: it is a time above 0 up to %v", c.SnapshotWait, maxSnapshotWait)
	}
	if c.SnapshotLimit < minBytes {
		return fmt.Errorf("--snapshot-limit %d: at least %d are needed", c.SnapshotLimit, minBytes)
	}
	if err := checkStore(c.SnapshotStore); err != nil {
		return fmt.Errorf("--snapshot-store: %w", err)
	}
	for _, d := range []*string{&c.Data, &c.Run} {
		abs, err := filepath.Abs(*d)
		if err != nil {
			return err
		}
		*d = abs
	}
	// A Unix socket's path has at most 107 bytes.
	if p := filepath.Join(c.Run, adminSocket); len(p) > 100 {
		return fmt.Errorf("--data: the path %s is too long for sockets (%d bytes, 100 at most)", c.Run, len(p))
	}
	return nil
}

// snapshotOptions are what a service gets that does not say otherwise; the zero
// value without snapshots.
func (c *Config) snapshotOptions() (o snapshots.Options, err error) {
	p, err := c.profile()
	if err != nil {
		return o, err
	}
	if o.Pool, err = snapshots.ParsePool(c.SnapshotPool); err != nil {
		return o, fmt.Errorf("--snapshot-pool: %w", err)
	}
	if o.WorkingSet, err = snapshots.ParseWorkingSets(c.SnapshotWorkingSet); err != nil {
		return o, fmt.Errorf("--snapshot-working-set: %w", err)
	}
	if p.off() {
		return snapshots.Options{}, nil
	}
	if o.Policy, err = snapshots.ParsePolicy(p.policy); err != nil {
		return o, fmt.Errorf("--snapshot-policy: %w", err)
	}
	if err = o.SetRestore(p.restore); err != nil {
		return o, fmt.Errorf("--snapshot-restore-mode: %w", err)
	}
	o.Diffs = c.SnapshotDiffs
	return o, nil
}

// cannotRestore says that a driver does not restore in the way that is asked
// for by a flag: services that do not ask for it themselves get another. "" if
// it does.
func cannotRestore(o snapshots.Options, driver string, can sandbox.Capabilities) string {
	switch {
	case o.Mode == "" || slices.Contains(can.RestoreModes, o.Mode):
		return ""
	case !can.Snapshot:
		return fmt.Sprintf("the default sandbox driver %s can make no snapshots: its functions boot; choose another with --sandbox", driver)
	case o.Mode == sandbox.RestorePager:
		return fmt.Sprintf("the default sandbox driver %s has no pager: its functions are restored in another way, without record and prefetch; choose another with --sandbox", driver)
	}
	return fmt.Sprintf("the default sandbox driver %s cannot restore with %q: it takes %q", driver, o.Mode, can.RestoreModes[0])
}

func (c *Config) mkdirs() error {
	for _, d := range []string{c.Data, c.Run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("--data: %w", err)
		}
	}
	return nil
}

func (c *Config) domain(gateway net.Addr) serving.Domain {
	port := 80
	if a, ok := gateway.(*net.TCPAddr); ok {
		port = a.Port
	}
	return serving.Domain{Suffix: c.Domain, Port: port}
}
