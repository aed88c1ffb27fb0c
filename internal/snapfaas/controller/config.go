// Package controller is multivm: functions from a YAML file, requests over TCP
// and HTTP, and a pool of micro-VMs that fits into a given memory.
package controller

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
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
	Sandbox        string              `json:"sandbox"` // Skep's own: the driver's name
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
	CopyDiff         *bool  `json:"copy_diff"` // nil: as true
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
	b, err := yaml.YAMLToJSONStrict(b)
	if err != nil {
		return nil, err
	}
	var file struct {
		Config
		Functions map[string]json.RawMessage `json:"functions"`
	}
	if err := strict(b, &file); err != nil {
		return nil, err
	}
	c := file.Config
	if len(file.Functions) == 0 {
		return nil, errors.New("functions: there are none")
	}
	if len(file.Functions) > maxFunctions {
		return nil, fmt.Errorf("functions: more than %d", maxFunctions)
	}
	c.Functions = map[string]Function{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(file.Functions)) {
		if !functionName.MatchString(name) {
			errs = append(errs, fmt.Errorf("functions: %.100q: a name is of letters, digits, dots, - and _, up to 100", name))
			continue
		}
		var f Function
		err := strict(file.Functions[name], &f)
		if err == nil {
			err = f.check(c)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("functions: %s: %w", name, err))
		}
		f.defaults()
		c.Functions[name] = f
	}
	return &c, errors.Join(errs...)
}

// strict decodes one JSON value into the struct that v points to. Unknown
// fields are errors, which say what there is.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		return nil
	}
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		is, _, _ := strings.Cut(kind.Value, " ")
		return fmt.Errorf("%s: want %s, not %s", cmp.Or(kind.Field, "the file"), inWords(kind.Type.Kind().String()), inWords(is))
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fmt.Errorf("unknown field %s: want %s", field, strings.Join(fields(reflect.TypeOf(v).Elem()), ", "))
	}
	return err
}

// inWords names a kind of value, of JSON's or Go's.
func inWords(kind string) string {
	switch kind {
	case "string":
		return "text"
	case "array":
		return "a list"
	case "object", "struct", "map":
		return "keys with values"
	case "int", "int64":
		return "a whole number"
	case "bool":
		return "true or false"
	}
	return "a " + kind
}

// fields are the names that a struct's JSON has.
func fields(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			names = append(names, fields(f.Type)...)
		} else {
			names = append(names, f.Tag.Get("json"))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
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
	dirs := SplitDirs(f.LoadDir)
	load := runner.Load{Dirs: dirs, CopyBase: f.CopyBase, WorkingSet: f.LoadWS}
	if f.CopyDiff != nil && len(dirs) > 1 { // without a diff it says nothing
		load.CopyDiff, load.LazyDiff = *f.CopyDiff, !*f.CopyDiff && !f.CopyBase
	}
	return runner.Config{
		Hostname: hostname(name), Rootfs: f.Runtimefs, App: app, NoApp: f.Appfs == "",
		MemoryMiB: f.Memory, VCPUs: f.VCPUs, Load: load,
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
