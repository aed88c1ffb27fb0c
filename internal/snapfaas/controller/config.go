// Package controller is multivm: functions from a YAML file, requests over TCP
// and HTTP, and a pool of micro-VMs that fits into a given memory.
package controller

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/skep-dev/skep/internal/snapfaas/runner"
)

// maxConfig bounds the YAML file, in bytes; maxFunctions what is in it.
const (
	maxConfig    = 1 << 20
	maxFunctions = 10_000
)

// Config is the controller's YAML file, as SnapFaaS has it.
type Config struct {
	AllowNetwork   bool                `json:"allow_network"`
	FirerunnerPath string              `json:"firerunner_path"`
	KernelPath     string              `json:"kernel_path"`
	KernelArgs     string              `json:"kernel_boot_args"`
	RuntimefsDir   string              `json:"runtimefs_dir"`
	AppfsDir       string              `json:"appfs_dir"`
	SnapshotDir    string              `json:"snapshot_dir"`
	Functions      map[string]Function `json:"functions"`
}

// Function is one function of the file.
type Function struct {
	Network          bool   `json:"network"`
	Runtimefs        string `json:"runtimefs"`
	Appfs            string `json:"appfs"`
	VCPUs            int64  `json:"vcpus"`
	Memory           int64  `json:"memory"` // MB
	ConcurrencyLimit int    `json:"concurrency_limit"`
	LoadDir          string `json:"load_dir"` // BASE[,DIFF...]
	CopyBase         bool   `json:"copy_base"`
	CopyDiff         bool   `json:"copy_diff"`
	LoadWS           bool   `json:"load_ws"`
}

var functionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Load reads a file. Paths in it that are relative begin where the file is;
// those of functions, in the folder of their kind.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	c.resolve(dir)
	return c, nil
}

// Parse reads a file's content. Unknown fields are errors.
func Parse(b []byte) (*Config, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("larger than %d bytes", maxConfig)
	}
	var c Config
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		return nil, err
	}
	if len(c.Functions) == 0 {
		return nil, errors.New("functions: there are none")
	}
	if len(c.Functions) > maxFunctions {
		return nil, fmt.Errorf("functions: more than %d", maxFunctions)
	}
	var errs []error
	for name, f := range c.Functions {
		if !functionName.MatchString(name) {
			errs = append(errs, fmt.Errorf("functions: %.100q: a name is of letters, digits, dots, - and _, up to 100", name))
			continue
		}
		if err := f.check(c); err != nil {
			errs = append(errs, fmt.Errorf("functions: %s: %w", name, err))
		}
		f.defaults()
		c.Functions[name] = f
	}
	return &c, errors.Join(errs...)
}

// Defaults of a function.
const (
	defaultVCPUs  = 1
	defaultMemory = 128 // MB
	defaultLimit  = 1
)

func (f *Function) defaults() {
	if f.VCPUs == 0 {
		f.VCPUs = defaultVCPUs
	}
	if f.Memory == 0 {
		f.Memory = defaultMemory
	}
	if f.ConcurrencyLimit == 0 {
		f.ConcurrencyLimit = defaultLimit
	}
}

func (f *Function) check(c Config) error {
	switch {
	case f.Runtimefs == "":
		return errors.New("runtimefs: must be set")
	case f.Network && !c.AllowNetwork:
		return errors.New("network: allow_network is false")
	case f.ConcurrencyLimit < 0:
		return fmt.Errorf("concurrency_limit: %d is less than 1", f.ConcurrencyLimit)
	case f.Memory < 0:
		return fmt.Errorf("memory: %d MB is less than none", f.Memory)
	}
	return nil
}

// resolve makes all paths absolute.
func (c *Config) resolve(dir string) {
	at := func(base, path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(base, path)
	}
	c.RuntimefsDir, c.AppfsDir = filepath.Join(at(dir, c.RuntimefsDir)), filepath.Join(at(dir, c.AppfsDir))
	c.SnapshotDir = at(dir, c.SnapshotDir)
	for _, d := range []*string{&c.RuntimefsDir, &c.AppfsDir, &c.SnapshotDir} {
		if *d == "" {
			*d = dir
		}
	}
	c.KernelPath, c.FirerunnerPath = at(dir, c.KernelPath), at(dir, c.FirerunnerPath)
	for name, f := range c.Functions {
		f.Runtimefs, f.Appfs = at(c.RuntimefsDir, f.Runtimefs), at(c.AppfsDir, f.Appfs)
		var dirs []string
		for _, d := range SplitDirs(f.LoadDir) {
			dirs = append(dirs, at(c.SnapshotDir, d))
		}
		f.LoadDir = strings.Join(dirs, ",")
		c.Functions[name] = f
	}
}

// SplitDirs splits a list such as BASE,DIFF.
func SplitDirs(s string) []string {
	var out []string
	for d := range strings.SplitSeq(s, ",") {
		if d = strings.TrimSpace(d); d != "" {
			out = append(out, d)
		}
	}
	return out
}

// Machine is what a child gets to know of a function. empty is the disk for
// those without an app of their own.
func (f Function) Machine(name, empty string) runner.Config {
	app := f.Appfs
	if app == "" {
		app = empty
	}
	return runner.Config{
		Hostname: hostname(name), Rootfs: f.Runtimefs, App: app, MemoryMiB: f.Memory, VCPUs: f.VCPUs,
		Load: runner.Load{Dirs: SplitDirs(f.LoadDir), CopyBase: f.CopyBase, CopyDiff: f.CopyDiff, WorkingSet: f.LoadWS},
	}
}

// hostname makes a host name of a function's.
func hostname(name string) string {
	s := strings.Map(func(r rune) rune {
		if r == '_' {
			return '-'
		}
		return r
	}, name)
	return strings.Trim(s[:min(len(s), 63)], "-.")
}
