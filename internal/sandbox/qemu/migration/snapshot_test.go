package migration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox/qemu/migration"
)

// saved is the snapshot that all tests restore.
type saved struct {
	memory string // path
	raw    []byte // as QEMU wrote it
	state  *migration.State
	// devices is the same moment's, by xen-save-devices-state.
	devices []byte
	sum     string // of the guest's memory
	disk    string // of what it reads from its disk
}

var theSnapshot struct {
	once sync.Once
	saved
	ok bool
}

// snapshot boots a machine and saves it, once.
func snapshot(t testing.TB) *saved {
	t.Helper()
	theSnapshot.once.Do(func() {
		ctx := deadline(t, 2*time.Minute)
		s := &theSnapshot.saved
		s.memory = filepath.Join(sharedDir, "memory")
		m := launch(ctx, t, options{
			memory: fmt.Sprintf("memory-backend-file,id=mem,size=%d,mem-path=%s,share=on", ramSize, s.memory),
			boot:   bootArgs(t),
		})
		s.sum = m.expect(ctx, "ready ")
		s.disk = m.ask(ctx, "disk", "disk")
		m.save(ctx, true, func(r io.Reader) error {
			var err error
			s.raw, err = io.ReadAll(r)
			return err
		})
		devices := filepath.Join(sharedDir, "devices")
		m.do(ctx, "xen-save-devices-state", object{"filename": devices, "live": false}, nil)
		m.kill()
		var err error
		if s.devices, err = os.ReadFile(devices); err != nil {
			t.Fatal(err)
		}
		if s.state, err = migration.Parse(bytes.NewReader(s.raw)); err != nil {
			t.Fatal(err)
		}
		theSnapshot.ok = true
	})
	if !theSnapshot.ok {
		t.Fatal("there is no snapshot")
	}
	return &theSnapshot.saved
}

// image is the snapshot's memory.
func (s *saved) image(t testing.TB) pager.Source {
	t.Helper()
	f, err := os.Open(s.memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	src, err := pager.NewSparseFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// check asks the restored guest about its memory, all of it.
func (s *saved) check(ctx context.Context, t testing.TB, m *machine) {
	t.Helper()
	if got := m.ask(ctx, "disk", "disk"); got != s.disk {
		t.Errorf("disk reads %s, want %s", got, s.disk)
	}
	if got := m.ask(ctx, "sum", "sum"); got != s.sum {
		t.Errorf("memory's sum is %s, want %s", got, s.sum)
	}
}

// What QEMU writes is understood to the last byte.
func TestParseSaved(t *testing.T) {
	s := snapshot(t)
	t.Logf("%d bytes; %s, capabilities %v, blocks %+v, %d pages, devices %d bytes", len(s.raw), s.state.Machine, s.state.Capabilities, s.state.Blocks, len(s.state.Pages), len(s.state.Devices))
	sections, err := s.state.Sections()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]int{}
	for _, sec := range sections {
		names[sec.Name] += len(sec.Data)
	}
	t.Log(names)
	if _, ok := names["cpu"]; !ok {
		t.Errorf("no section cpu in %v", names)
	}
	var again bytes.Buffer
	if _, err := s.state.WriteTo(&again); err != nil {
		t.Fatal(err)
	}
	back, err := migration.Parse(&again)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(back) != fmt.Sprint(s.state) {
		t.Error("written and parsed, the state differs")
	}
}
