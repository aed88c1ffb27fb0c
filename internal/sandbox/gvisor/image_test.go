package gvisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

// writeImage makes the files of a snapshot, of nonsense.
func writeImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range imageFiles {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeIndex(dir, index{ID: "1"}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheckRestore(t *testing.T) {
	good := writeImage(t)
	for _, test := range []struct {
		name    string
		restore sandbox.Restore
		damage  func(t *testing.T, dir string)
		err     string // "" for none
		is      error
	}{
		{name: "whole", restore: sandbox.Restore{Image: sandbox.Image{Dirs: []string{good}}}},
		{name: "eager", restore: sandbox.Restore{Image: sandbox.Image{Dirs: []string{good}}, Mode: sandbox.RestoreEager}},
		{name: "mode", restore: sandbox.Restore{Image: sandbox.Image{Dirs: []string{good}}, Mode: sandbox.RestoreMap}, err: `"map"`, is: sandbox.ErrUnsupported},
		{name: "record", restore: sandbox.Restore{Image: sandbox.Image{Dirs: []string{good}}, Record: true}, err: "working set", is: sandbox.ErrUnsupported},
		{name: "layers", restore: sandbox.Restore{Image: sandbox.Image{Dirs: make([]string, maxLayers+1)}}, err: "65 layers"},
		{name: "foreign base", restore: sandbox.Restore{Image: sandbox.Image{Dirs: []string{good, good}}}, err: "is not a difference from"},
		{name: "none", err: "0 layers"},
		{name: "version", err: "made by gVisor another", damage: func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, fileIndex), Version(), "another")
		}},
		{name: "longer", err: "memory is damaged", damage: func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, sandbox.FileMemory), "memory", "memories")
		}},
		{name: "folder", err: "state is damaged", damage: func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(filepath.Join(dir, sandbox.FileState)), os.Mkdir(filepath.Join(dir, sandbox.FileState), 0o700)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := test.restore
			if test.damage != nil {
				dir := writeImage(t)
				test.damage(t, dir)
				r.Image.Dirs = []string{dir}
			}
			_, err := checkRestore(&r)
			switch {
			case test.err == "" && (err != nil || r.Mode == ""):
				t.Errorf("mode %q, error %v", r.Mode, err)
			case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("error %v, want %q in it", err, test.err)
			case test.is != nil && !errors.Is(err, test.is):
				t.Errorf("error %v, want %v", err, test.is)
			}
		})
	}
}

func rewrite(t *testing.T, name, from, to string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(b), from, to)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCompatibility(t *testing.T) {
	d := New(Config{})
	c, err := d.Compatibility(context.Background(), &sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Version != Version() || c.CPUModel == "" || c.MemoryBytes <= 0 || c.VCPUs <= 0 {
		t.Errorf("%+v", c)
	}
	if !slices.ContainsFunc(c.CPUFeatures, func(f string) bool { return strings.HasPrefix(f, "cache_line_") }) {
		t.Errorf("no cache line size among the features %q", c.CPUFeatures)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"Version":"v0","Sizes":{"state":1,"ranges":2,"memory":3}}`))
	f.Add([]byte(`{"Sizes":{"state":-1}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseIndex(b)
		if err != nil {
			return
		}
		for _, file := range imageFiles {
			if x.Sizes[file.name] <= 0 {
				t.Errorf("accepted %q without the size of %s", b, file.name)
			}
		}
	})
}

func TestParseIdentity(t *testing.T) {
	if id, err := parseIdentity(""); err != nil || len(id) > 0 {
		t.Errorf("nothing: %v, %v", id, err)
	}
	if id, err := parseIdentity(`{"/etc/hostname":"x\n"}`); err != nil || id["/etc/hostname"] != "x\n" {
		t.Errorf("one file: %v, %v", id, err)
	}
	if _, err := parseIdentity("{"); err == nil {
		t.Error("half an annotation: no error")
	}
}

func TestMachineID(t *testing.T) {
	a, b := string(newMachineID()), string(newMachineID())
	if a == b || len(a) != 33 || a[12] != '4' || strings.Trim(a, "0123456789abcdef") != "\n" {
		t.Errorf("%q, %q: want 32 digits of a version 4 UUID", a, b)
	}
}
