package runner

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

func good() Config {
	return Config{Rootfs: "/r", App: "/a", MemoryMiB: 128, VCPUs: 1}
}

func TestValidate(t *testing.T) {
	c := good()
	if err := c.Validate(); err != nil || c.point() != guest.Language || c.Boot != DefaultBoot || c.Request != DefaultRequest {
		t.Errorf("%+v, %v", c, err)
	}
	c = good()
	c.Load.Dirs, c.Boot = []string{"/base"}, time.Second
	if err := c.Validate(); err != nil || c.point() != guest.App || c.Boot != time.Second {
		t.Errorf("%+v, %v", c, err)
	}
	// The REAP of a whole snapshot, and what is validated twice, by parent and child.
	c = good()
	c.Load = Load{Dirs: []string{"/whole"}, LazyDiff: true, WorkingSet: true}
	if err := errors.Join(c.Validate(), c.Validate()); err != nil {
		t.Error(err)
	}
	c = good()
	c.Dump = Dump{Dir: "/n", Point: guest.App}
	if err := errors.Join(c.Validate(), c.Validate()); err != nil || c.point() != guest.App {
		t.Error(err)
	}
	for want, change := range map[string]func(c *Config){
		"--rootfs":                               func(c *Config) { c.Rootfs = "relative" },
		"--appfs":                                func(c *Config) { c.App = "" },
		"--mem_size: 8 MB":                       func(c *Config) { c.MemoryMiB = 8 },
		"--vcpu_count":                           func(c *Config) { c.VCPUs = 0 },
		"--copy_base: it needs":                  func(c *Config) { c.Load.CopyBase = true },
		"--load_ws: it needs":                    func(c *Config) { c.Load.WorkingSet = true },
		"--dump_ws: it needs":                    func(c *Config) { c.Dump.WorkingSet = "/d" },
		"--copy_diff: it needs a diff":           func(c *Config) { c.Load = Load{Dirs: []string{"/b"}, CopyDiff: true} },
		"--copy_diff=false: not together":        func(c *Config) { c.Load = Load{Dirs: []string{"/b", "/d"}, CopyBase: true, LazyDiff: true} },
		"--force_exit: it needs":                 func(c *Config) { c.Dump.Exit = true },
		"is neither language nor app":            func(c *Config) { c.Dump.Point = "kernel" },
		"--copy_diff=false: it needs --load_dir": func(c *Config) { c.Load.LazyDiff = true },
		"--copy_diff=false: it needs a diff":     func(c *Config) { c.Load = Load{Dirs: []string{"/b"}, LazyDiff: true} },
		"--copy_base: not together":              func(c *Config) { c.Load = Load{Dirs: []string{"/b"}, CopyBase: true}; c.Dump.WorkingSet = "/b" },
		"--dump_ws: not together": func(c *Config) {
			c.Load.Dirs, c.Dump = []string{"/b"}, Dump{Dir: "/n", WorkingSet: "/b", Exit: true}
		},
		"--snapshot_point: it says when": func(c *Config) { c.Dump.Point = guest.App },
		"--boot_timeout: -1s":            func(c *Config) { c.Boot = -time.Second },
		"--request_timeout: -1s":         func(c *Config) { c.Request = -time.Second },
		"--load_ws: not together":        func(c *Config) { c.Load = Load{Dirs: []string{"/b"}, WorkingSet: true}; c.Dump.WorkingSet = "/b" },
		"--load_dir: more than 16 folde": func(c *Config) { c.Load.Dirs = make([]string, 17) },
	} {
		c := good()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A child that is not started as one says so, and one without a parent ends.
func TestServeWithoutConfig(t *testing.T) {
	var in, out bytes.Buffer
	if err := frame.U32.Write(&in, []byte(`{"kind":"request"}`)); err != nil {
		t.Fatal(err)
	}
	held, w := io.Pipe() // the parent is still there
	defer w.Close()
	if err := Serve(t.Context(), nil, io.MultiReader(&in, held), &out); err != nil {
		t.Error(err)
	}
	m, err := receive(&out)
	if err != nil || m.Kind != kindFailed || !strings.Contains(m.Error, "not by hand") {
		t.Errorf("%+v, %v", m, err)
	}
	if err := Serve(t.Context(), nil, strings.NewReader(""), io.Discard); err != nil {
		t.Errorf("no parent: %v", err)
	}
	if err := Serve(t.Context(), nil, strings.NewReader("\x00\x00\x00\x01{"), io.Discard); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("garbage: %v", err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x10{\"kind\":\"ready\"}"))
	f.Add([]byte("\x00\x00\x00\x02[]"))
	f.Fuzz(func(_ *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			m, err := receive(r)
			if err != nil {
				return
			}
			if m.Config != nil {
				_ = m.Config.Validate()
			}
		}
	})
}
