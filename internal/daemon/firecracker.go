package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
)

// FirecrackerConfig is what the firecracker driver can be told, as the flags
// --firecracker-* have it.
type FirecrackerConfig struct {
	CPUTemplate   string // a name of Firecracker's, or a file; "" is none
	HugePages     bool
	Balloon       string // off, free, or a size
	DirtyTracking bool
	// Rates are BYTES or BYTES,OPERATIONS per second; "" is no limit.
	DiskRate, ReceiveRate, SendRate string
	Metadata                        string // a file with a JSON object; "" is no service
}

// Balloons are the words that FirecrackerConfig.Balloon may be.
var Balloons = []string{"off", "free"}

// minRate is the least of a rate, in bytes per second: below, nothing boots in
// time.
const minRate = 64 << 10

// refill is how often a rate's bucket is filled, in milliseconds: what may come
// at once is a tenth of a second's.
const refill = 100

// config is the driver's configuration but for what all drivers share. Errors
// name the flag.
func (f *FirecrackerConfig) config() (c firecracker.Config, err error) {
	c.CPUTemplate, c.HugePages, c.NoDirtyTracking = f.CPUTemplate, f.HugePages, !f.DirtyTracking
	if c.CPUTemplate != "" {
		if err := c.Check(); err != nil {
			return c, fmt.Errorf("--firecracker-cpu-template: %w", err)
		}
	}
	switch f.Balloon {
	case "off":
	case "free":
		c.Balloon = true
	default:
		q, err := resource.ParseQuantity(f.Balloon)
		if err != nil || q.Value() < 1<<20 {
			return c, fmt.Errorf("--firecracker-balloon: %q is not off, free, or a size of at least 1Mi", f.Balloon)
		}
		c.Balloon, c.BalloonMiB = true, q.Value()>>20
	}
	for _, r := range []struct {
		flag, value string
		to          **fcapi.RateLimiter
	}{
		{"disk", f.DiskRate, &c.DiskRate}, {"receive", f.ReceiveRate, &c.ReceiveRate}, {"send", f.SendRate, &c.SendRate},
	} {
		if *r.to, err = parseRate(r.value); err != nil {
			return c, fmt.Errorf("--firecracker-%s-rate: %w", r.flag, err)
		}
	}
	if f.Metadata != "" {
		info, err := os.Stat(f.Metadata)
		if err == nil && info.Size() > 1<<20 {
			err = fmt.Errorf("%s has %d bytes, %d can be kept", f.Metadata, info.Size(), firecracker.MaxMMDS)
		}
		if err == nil {
			c.MMDS, err = os.ReadFile(f.Metadata)
		}
		if err == nil {
			err = firecracker.Config{MMDS: c.MMDS}.Check()
		}
		if err != nil {
			return c, fmt.Errorf("--firecracker-metadata: %w", err)
		}
	}
	return c, nil
}

// parseRate reads BYTES or BYTES,OPERATIONS per second.
func parseRate(s string) (*fcapi.RateLimiter, error) {
	if s == "" {
		return nil, nil
	}
	size, ops, hasOps := strings.Cut(s, ",")
	q, err := resource.ParseQuantity(size)
	if err != nil || q.Value() < minRate || q.Value() > 1<<40 {
		return nil, fmt.Errorf("%q is not BYTES or BYTES,OPERATIONS per second, such as 10Mi or 10Mi,500, of at least %dKi", s, minRate>>10)
	}
	const second = 1000 / refill
	r := &fcapi.RateLimiter{Bandwidth: &fcapi.TokenBucket{Size: q.Value() / second, RefillMillis: refill}}
	if hasOps {
		n, err := strconv.ParseInt(ops, 10, 32)
		if err != nil || n < second {
			return nil, fmt.Errorf("%q: %q is not a number of operations per second, at least %d", s, ops, second)
		}
		r.Ops = &fcapi.TokenBucket{Size: n / second, RefillMillis: refill}
	}
	return r, nil
}

// firecrackerConfig is the whole configuration of the driver.
func (c *Config) firecrackerConfig() (firecracker.Config, error) {
	f, err := c.Firecracker.config()
	f.CacheDir, f.Kernel, f.Log = filepath.Join(c.Data, "cache", "firecracker"), c.Kernel, c.Log
	return f, err
}
