package snapshot

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func encoded(t testing.TB) []byte {
	m := testManifest(ID{9})
	m.Layers = []LayerRef{{"memory", Digest{1}, 1 << 20}, {"ws", Digest{2}, 4096}}
	m.WorkingSet = "ws"
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestManifestIsStrict(t *testing.T) {
	good := string(encoded(t))
	if _, err := DecodeManifest([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"unknown field":  {`"vcpus"`, `"more": 1, "vcpus"`},
		"other case":     {`"vcpus"`, `"VCPUs"`},
		"field twice":    {`"vcpus": 1,`, `"vcpus": 1, "vcpus": 1,`},
		"no driver":      {`"name": "qemu"`, `"name": ""`},
		"no memory":      {`"memoryBytes": 1048576`, `"memoryBytes": 0`},
		"negative vcpus": {`"vcpus": 1`, `"vcpus": -1`},
		"role twice":     {`"role": "ws"`, `"role": "memory"`},
		"working set":    {`"workingSet": "ws"`, `"workingSet": "xx"`},
		"bad digest":     {`sha256:01`, `sha256:0g`},
		"upper case":     {`sha256:09`, `SHA256:09`},
		"features order": {`"avx",`, `"zzz",`},
		"other form":     {"\n", ""},
		"local time":     {`Z"`, `+01:00"`},
	} {
		bad := strings.Replace(good, c[0], c[1], 1)
		if bad == good {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := DecodeManifest([]byte(bad)); err == nil {
			t.Errorf("%s: it was accepted", name)
		}
	}
	for name, bad := range map[string]string{"trailing": good + "{}", "newline": good + "\n", "empty": "", "null": "null", "huge": strings.Repeat(" ", MaxManifest+1)} {
		if _, err := DecodeManifest([]byte(bad)); err == nil {
			t.Errorf("%s: it was accepted", name)
		}
	}
	var v *VersionError
	if _, err := DecodeManifest([]byte(strings.Replace(good, `"version": 1`, `"version": 2`, 1))); !errors.As(err, &v) || v.Have != 2 {
		t.Errorf("another version: %v", err)
	}
}

// What is wrong is told by field, always in the same order.
func TestManifestNamesFields(t *testing.T) {
	m := testManifest(ID{})
	m.Layers = []LayerRef{{"memory", Digest{1}, 1 << 20}}
	m.Driver, m.CPU.Model = Component{}, ""
	m.Kernel, m.CPU.Arch = strings.Repeat("x", maxString+1), strings.Repeat("y", maxString+2)
	_, err := m.Encode()
	want := "manifest: driver.name is missing\ndriver.version is missing\nkernel has 4097 bytes, allowed are 4096\n" +
		"cpu.arch has 4098 bytes, allowed are 4096\ncpu.model is missing"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestMatch(t *testing.T) {
	for field, change := range map[string]func(*Environment){
		"driver.name":    func(e *Environment) { e.Driver.Name = "gvisor" },
		"driver.version": func(e *Environment) { e.Driver.Version = "8" },
		"kernel":         func(e *Environment) { e.Kernel = "6.2" },
		"agent":          func(e *Environment) { e.Agent = "" },
		"rootImage":      func(e *Environment) { e.RootImage = "x" },
		"cpu.arch":       func(e *Environment) { e.CPU.Arch = "arm64" },
		"cpu.model":      func(e *Environment) { e.CPU.Model = "x" },
		"cpu.features":   func(e *Environment) { e.CPU.Features = []string{"avx", "sse"} },
		"memoryBytes":    func(e *Environment) { e.MemoryBytes = 1 },
		"vcpus":          func(e *Environment) { e.VCPUs = 3 },
		"":               func(e *Environment) { e.CPU.Features = []string{"zz", "avx2", "avx"} },
	} {
		m := testManifest(ID{})
		env := Environment{Requirements: m.Requirements}
		change(&env)
		got := Mismatches(m.Match(env))
		if field == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].Field != field {
			t.Errorf("%s: mismatches %v", field, got)
		}
	}
	m := testManifest(ID{})
	if got := Mismatches(m.Match(Environment{})); len(got) != 10 {
		t.Errorf("nothing matches, yet only %v", got)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(encoded(f))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(data)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("decoded, but encoded differently: %v", err)
		}
	})
}

func FuzzChunkIndex(f *testing.F) {
	half, full := make(bitmap, 32), bytes.Repeat([]byte{0xff}, 32)
	half[3] = 7
	ix := index{pageSize: 4096, chunkPages: 256, size: 2<<20 + 5000, parent: Digest{1}, entries: []entry{
		{0, Digest{2}, full, make(bitmap, 32)}, {1, Digest{3}, half, make(bitmap, 32)}, {2, Digest{}, make(bitmap, 32), bitmap(append([]byte{3}, make([]byte, 31)...))},
	}}
	f.Add(ix.encode())
	f.Add((&index{pageSize: 4096, chunkPages: 256}).encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		ix, err := decodeIndex(data)
		if err != nil {
			return
		}
		if !bytes.Equal(ix.encode(), data) {
			t.Error("decoded, but encoded differently")
		}
		for _, e := range ix.entries {
			if n := ix.pagesIn(int(e.chunk)); e.data.rank(min(n, len(e.data)*8-1)) > n {
				t.Error("more pages than the chunk has")
			}
		}
	})
}

// What compresses is compressed, and what does not is stored as it is.
func TestChunkIsCompressedWhereItPays(t *testing.T) {
	for name, c := range map[string]struct {
		plain []byte
		codec byte
		most  int
	}{
		"noise":             {noise(1, 1<<20), codecPlain, 1<<20 + chunkHeader},
		"text":              {bytes.Repeat([]byte("a page of text, "), 1<<16), codecZstd, 1 << 13},
		"noise with a hole": {append(noise(2, 3<<18), make([]byte, 1<<18)...), codecZstd, 1<<20 - 1<<17 + chunkHeader},
		"almost noise":      {append(noise(3, 1<<20-1<<16), make([]byte, 1<<16)...), codecPlain, 1<<20 + chunkHeader},
		"one byte":          {[]byte("x"), codecPlain, 1 + chunkHeader},
	} {
		stored := encodeChunk([]byte("before"), c.plain)[len("before"):]
		if stored[3] != c.codec || len(stored) > c.most {
			t.Errorf("%s: codec %d and %d bytes of %d, want codec %d and at most %d", name, stored[3], len(stored), len(c.plain), c.codec, c.most)
		}
		if got, err := decodeChunk(stored, DigestOf(c.plain), len(c.plain), nil); err != nil || !bytes.Equal(got, c.plain) {
			t.Errorf("%s: read as %d bytes, %v", name, len(got), err)
		}
	}
}

func FuzzChunk(f *testing.F) {
	text := bytes.Repeat([]byte("bees "), 2000)
	f.Add(encodeChunk(nil, text), len(text))
	f.Add(encodeChunk(nil, []byte("x")), 1)
	f.Fuzz(func(t *testing.T, data []byte, length int) {
		if length < 0 || length > maxChunk {
			return
		}
		plain, err := decodeChunk(data, DigestOf(text), length, nil)
		if err == nil && !bytes.Equal(plain, text) {
			t.Error("other content was accepted")
		}
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Errorf("%v is neither ErrDamaged nor ErrForeign", err)
		}
	})
}
