package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend/local"
)

const childEnv = "SKEP_SNAPSHOT_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Println(createForEver(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// createForEver is the child: it makes one snapshot after another, each a diff
// of the one before, until it is killed.
func createForEver(dir string) error {
	ctx := context.Background()
	b, err := local.Open(dir, local.Options{NoSync: true})
	if err != nil {
		return err
	}
	s := New(b, Options{})
	parent, layer := ID{}, Digest{}
	for n := uint64(os.Getpid()) << 20; ; n++ {
		c, err := s.Begin(ctx, testManifest(parent))
		if err != nil {
			return err
		}
		if parent.IsZero() {
			fmt.Println("begun")
		}
		img := randomImage(rand.New(rand.NewPCG(n, 1)), 3<<20)
		ref, err := c.WriteLayer(ctx, "memory", bytes.NewReader(img), int64(len(img)), LayerOptions{Parent: layer})
		if err != nil {
			return err
		}
		if parent, err = c.Commit(ctx); err != nil {
			return err
		}
		if layer = ref.Digest; n%4 == 3 {
			parent, layer = ID{}, Digest{}
		}
	}
}

// However a creating process dies, the store lists whole snapshots only, and
// GC frees the rest.
func TestKilledCreator(t *testing.T) {
	dir := t.TempDir()
	for round := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "begun\n" {
			t.Errorf("the child says %q, %v", line, err)
		}
		// Not a wait for anything: the moment of death shall differ.
		time.Sleep(time.Duration(rand.IntN(60*(1+round%3))) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // reports the kill
	}
	b, err := local.Open(dir, local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour) // the leases of the dead have run out
	s := New(b, Options{Now: func() time.Time { return later }})
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := gc(t, s, Policy{})
	t.Logf("%d snapshots; GC freed %d objects with %d bytes", len(all), st.Freed, st.Bytes)
	for _, e := range all {
		if rep, err := s.Verify(t.Context(), e.ID); e.Err != nil || err != nil || !rep.OK() {
			t.Errorf("snapshot %s: %v, %v, %+v", e.ID, e.Err, err, rep)
		}
	}
	gc(t, s, Policy{MaxBytes: 1})
	for _, d := range []string{chunkDir, layerDir, manifestDir, useDir, leaseDir} {
		if left := objects(t, b, d); len(left) > 0 {
			t.Errorf("%d objects are left in %s", len(left), d)
		}
	}
	if tmp, err := os.ReadDir(dir + "/.tmp"); err != nil || len(tmp) > 0 {
		t.Errorf("%d half-written files are left, %v", len(tmp), err)
	}
}
