package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

func testState() savedState {
	t := agent.NewToken()
	return savedState{
		QEMU: "QEMU 7.2", Accel: AccelTCG, TSCKHz: 2_000_000,
		Saved: microvm.Saved{
			MemoryMiB: 192, CPUs: 1, MAC: "06:00:ac:10:00:02",
			Address: "172.16.0.2/30", Gateway: "172.16.0.1", RootBytes: 4096, Token: t[:], Marks: agent.Marks{Stdout: 3},
			Disks: []microvm.SavedDisk{{Path: "/a", Bytes: 1, Modified: 2}},
		},
	}
}

func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	devices := []byte("what QEMU wrote")
	want := testState()
	if err := writeState(path, want, devices); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the state holds a token, and has mode %v, %v", fi.Mode(), err)
	}
	got, f, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := got.fits(&want); err != nil {
		t.Errorf("it does not fit what was saved: %v", err)
	}
	if renewed, err := got.NewDisks(&want.Saved); renewed || err != nil {
		t.Errorf("its own disks are new to it: %v", err)
	}
	rest := make([]byte, 100)
	if n, _ := f.Read(rest); string(rest[:n]) != string(devices) || !bytes.Equal(got.Token, want.Token) || got.Marks != want.Marks {
		t.Errorf("got %+v and %q", got, rest[:n])
	}
	for what, change := range map[string]func(*savedState){
		"QEMU":                  func(s *savedState) { s.QEMU = "8" },
		"provider":              func(s *savedState) { s.Accel = AccelKVM },
		"memory":                func(s *savedState) { s.MemoryMiB++ },
		"processors":            func(s *savedState) { s.CPUs++ },
		"kHz":                   func(s *savedState) { s.TSCKHz = 2_100_000 },
		"address":               func(s *savedState) { s.Address = "10.0.0.2/30" },
		"root file system":      func(s *savedState) { s.RootBytes++ },
		"number of disks":       func(s *savedState) { s.Disks = nil },
		"gateway was 172.16.0.": func(s *savedState) { s.Gateway = "172.16.0.3" },
	} {
		other := want
		change(&other)
		if err := got.fits(&other); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: error %v", what, err)
		}
	}
	near := want
	near.TSCKHz += 100
	near.Disks = []microvm.SavedDisk{{Path: "/b", Bytes: 1, Modified: 2}}
	if err := got.fits(&near); err != nil {
		t.Errorf("a clock that was measured again: %v", err)
	}
	if renewed, err := got.NewDisks(&near.Saved); !renewed || err != nil {
		t.Errorf("another disk: %t, %v", renewed, err)
	}
}

// FuzzState gives readState arbitrary bytes.
func FuzzState(f *testing.F) {
	path := filepath.Join(f.TempDir(), "state")
	if err := writeState(path, testState(), []byte("devices")); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte(stateMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readState(bytes.NewReader(b))
		if err == nil && (s.Bytes > maxDevices || len(s.Token) != len(agent.Token{}) || s.MemoryMiB <= 0) {
			t.Errorf("accepted %+v", s)
		}
	})
}

func TestParseMaps(t *testing.T) {
	const good = `55d0c0000000-55d0c0001000 r-xp 00000000 08:01 77 /usr/bin/qemu
7f0000000000-7f0000200000 rw-p 00000000 08:01 42 /x/memory
7f0000200000-7f0000400000 rw-p 00200000 08:01 42 /x/memory
7f0000400000-7f0000401000 ---p 00000000 00:00 0
`
	r, err := parseMaps(strings.NewReader(good), 8, 1, 42, 4<<20)
	if err != nil || r.start != 0x7f0000000000 {
		t.Errorf("%+v, %v", r, err)
	}
	for name, bad := range map[string]string{
		"shared":  strings.ReplaceAll(good, "rw-p", "rw-s"),
		"missing": strings.ReplaceAll(good, " 42 ", " 43 "),
		"gap":     strings.ReplaceAll(good, "00200000 08:01", "00300000 08:01"),
		"small":   strings.Join(strings.SplitAfter(good, "\n")[:2], ""),
	} {
		if r, err := parseMaps(strings.NewReader(bad), 8, 1, 42, 4<<20); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// Zeros that were written are not the same as nothing.
func TestSparseWriter(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4*pageSize)
	p[pageSize] = 1
	err = sparseWriter{f}.write(p, 8*pageSize, func(_ []byte, at int64) bool { return at >= 9*pageSize && at < 11*pageSize })
	if err == nil {
		err = f.Truncate(16 * pageSize)
	}
	if err != nil {
		t.Fatal(err)
	}
	from, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil || from != 9*pageSize {
		t.Errorf("data begins at %d, %v", from, err)
	}
	if to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil || to != 11*pageSize {
		t.Errorf("data ends at %d, %v", to, err)
	}
}
