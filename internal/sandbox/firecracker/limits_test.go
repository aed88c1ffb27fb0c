package firecracker

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

func TestChanged(t *testing.T) {
	fast := &fcapi.TokenBucket{Size: 1000, RefillMillis: 100}
	none := &fcapi.TokenBucket{}
	bytes, both := &fcapi.RateLimiter{Bandwidth: fast}, &fcapi.RateLimiter{Bandwidth: fast, Ops: fast}
	for _, c := range []struct{ was, now, want *fcapi.RateLimiter }{
		{nil, nil, nil},
		{bytes, &fcapi.RateLimiter{Bandwidth: &fcapi.TokenBucket{Size: 1000, RefillMillis: 100}}, nil},
		{nil, bytes, &fcapi.RateLimiter{Bandwidth: fast, Ops: none}},
		{both, bytes, &fcapi.RateLimiter{Bandwidth: fast, Ops: none}},
		{both, nil, &fcapi.RateLimiter{Bandwidth: none, Ops: none}},
	} {
		if got := changed(c.was, c.now); !reflect.DeepEqual(got, c.want) {
			t.Errorf("from %+v to %+v: %+v, want %+v", c.was, c.now, got, c.want)
		}
	}
}

// What a template hides does not bar another host.
func TestTemplateFeatures(t *testing.T) {
	tmpl, err := parseTemplate([]byte(`{"cpuid_modifiers":[
		{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[
			{"register":"ecx","bitmap":"0bx0xxxxxxxxxxxxxxxxxxxxxxxxxxxxx1"},{"register":"edx","bitmap":"0bxxxx_xxx0"}]},
		{"leaf":"7","subleaf":"0","modifiers":[{"register":"ebx","bitmap":"0b00xxxxxxxxxxxxx0xxxxxxxxxxxxxxxx"}]},
		{"leaf":"0x80000008","subleaf":"0x0","modifiers":[{"register":"ebx","bitmap":"0b0"}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	host := []string{"avx", "avx512bw", "avx512f", "avx512vl", "fpu", "pni", "rdrand", "vme"}
	got, err := tmpl.without(host)
	if want := []string{"avx", "pni", "vme"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("left of %q is %q, %v; want %q", host, got, err, want)
	}
	for _, bad := range []string{
		``, `[]`, `{"cpuid_modifiers":[{"leaf":"x"}]}`,
		`{"cpuid_modifiers":[{"leaf":"1","subleaf":"0","modifiers":[{"register":"eax","bitmap":"01"}]}]}`,
	} {
		if _, err := parseTemplate([]byte(bad)); err == nil {
			t.Errorf("%s was parsed", bad)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add([]byte(`{"cpuid_modifiers":[{"leaf":"1","subleaf":"0","modifiers":[{"register":"ecx","bitmap":"0b01x"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tmpl, err := parseTemplate(b)
		if err != nil {
			return
		}
		if _, err := tmpl.without([]string{"fpu"}); err != nil {
			t.Errorf("parsed, and then: %v", err)
		}
	})
}

// After a save that was lost Firecracker writes all memory. A difference is
// made of it by comparing it with the image.
func TestWriteWholeMemory(t *testing.T) {
	for _, diff := range []bool{false, true} {
		dir := t.TempDir()
		base := filepath.Join(dir, "base")
		if err := os.Mkdir(base, 0o700); err != nil {
			t.Fatal(err)
		}
		pages(t, base, sandbox.FileMemory, "012034")
		img, err := microvm.OpenImage(sandbox.Image{Dirs: []string{base}}, 6*pager.PageSize)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		j, err := newJail(dir, "firecracker", "id", uint32(os.Getuid()))
		if err != nil {
			t.Fatal(err)
		}
		// Page 2 became zero, page 4 another; page 1 was written with the same.
		pages(t, j.path(saveDir), sandbox.FileMemory, "010054")
		b := &box{d: &Driver{}, jail: j, image: img, lost: true}
		f, err := b.take(sandbox.FileMemory)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, sandbox.FileMemory)
		if err := b.writeMemory(t.Context(), f, to, diff, true); err != nil {
			t.Fatal(err)
		}
		want := ".x..xx"
		if diff {
			want = "..x.x."
		}
		if got := data(t, f, 6); got != want {
			t.Errorf("difference %v: the file has %s, want %s", diff, got, want)
		}
		if _, err := os.Stat(to); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}
