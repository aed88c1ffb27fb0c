package guest

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/agent"
)

func TestParseParams(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"quiet skep.address=172.16.0.2/30 skep.gateway=172.16.0.1 skep.mtu=1400 skep.timer=62500", ""},
		{"skep.probe", ""},
		{"quiet", "must be set"},
		{"skep.address=172.16.0.2/30", "must be set"},
		{"skep.address=172.16.0.2", "not an IPv4 address and mask"},
		{"skep.address=fd00::1/64", "not an IPv4 address and mask"},
		{"skep.gateway=x", "not an IPv4 address"},
		{"skep.mtu=99999", "not an MTU"},
		{"skep.timer=-1", "not a frequency"},
		{"skep.disks=99", "not a number of disks"},
		{"skep.disks=-1", "not a number of disks"},
	} {
		p, err := parseParams(test.in)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%q: %v", test.in, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%q: error %v, want %q", test.in, err, test.want)
		case strings.Contains(test.in, "mtu=1400") && (p.mtu != 1400 || p.timerKHz != 62500 || p.address.String() != "172.16.0.2/30" || p.gateway.String() != "172.16.0.1"):
			t.Errorf("%q: %+v", test.in, p)
		}
	}
}

const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestListens(t *testing.T) {
	for _, test := range []struct {
		row  string
		want bool
	}{
		{"   0: 00000000:1F90 00000000:0000 0A 00000000:00000000", true},
		{"   0: 020010AC:1F90 00000000:0000 0A 00000000:00000000", true},
		{"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000", false}, // loopback
		{"   0: 00000000:1F91 00000000:0000 0A 00000000:00000000", false}, // another port
		{"   0: 020010AC:1F90 010010AC:ABCD 01 00000000:00000000", false}, // a connection
		{"   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A x", true},
		{"   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A x", false},
		{"   0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A x", false},
		{"   0: 0000000000000000FFFF0000020010AC:1F90 00000000000000000000000000000000:0000 0A x", true},
		{"   0: zz:1F90 x 0A", false},
		{"garbage", false},
	} {
		got, err := listens(strings.NewReader(heading+test.row+"\n"), 8080)
		if err != nil || got != test.want {
			t.Errorf("%q: %v, %v; want %v", test.row, got, err, test.want)
		}
	}
}

func TestStream(t *testing.T) {
	r, w := io.Pipe()
	s := newStream(r)
	want := bytes.Repeat([]byte("output "), 3*agent.MaxChunk/7)
	go func() {
		_, _ = w.Write(want)
		w.Close()
	}()
	ctx := t.Context()
	var got []byte
	for {
		data, end, err := s.read(ctx, uint64(len(got)))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > agent.MaxChunk {
			t.Fatalf("%d bytes are kept", len(data))
		}
		// A connection that broke asks again.
		if again, _, err := s.read(ctx, uint64(len(got))); err != nil || !bytes.HasPrefix(again, data) {
			t.Fatalf("the second answer differs: %v", err)
		}
		got = append(got, data...)
		if end {
			break
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	if _, _, err := s.read(ctx, 0); err == nil {
		t.Error("output that was freed could be read")
	}
	if _, _, err := s.read(ctx, uint64(len(got)+1)); err == nil {
		t.Error("output beyond the end could be read")
	}
}

func TestStreamWaits(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	s := newStream(r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if data, end, err := s.read(ctx, 0); len(data) > 0 || end || err != nil {
		t.Errorf("%q, %v, %v; want nothing yet", data, end, err)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"prog": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/nowhere", "PATH=" + dir}
	if got, err := lookPath("prog", env); err != nil || got != filepath.Join(dir, "prog") {
		t.Errorf("prog: %q, %v", got, err)
	}
	for name, want := range map[string]string{"plain": "permission denied", "other": "not found in $PATH"} {
		if _, err := lookPath(name, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if got, err := lookPath("/a/b", nil); err != nil || got != "/a/b" {
		t.Errorf("/a/b: %q, %v", got, err)
	}
}

// An image's passwd file may be anything.
func TestOpenDatabase(t *testing.T) {
	if _, err := openDatabase("/dev/zero"); err == nil {
		t.Error("a device was opened")
	}
	if _, err := openDatabase(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
}
