package journal

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func TestPutListDelete(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "j ournal?x.db") // a path that needs quoting
	j := open(t, path)
	for _, id := range []string{"a", "b", "a"} {
		if err := j.Put(ctx, "sandbox", id, map[string]string{"dir": "/d/" + id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Put(ctx, "other", "a", nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(ctx, "sandbox", "b"); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(ctx, "sandbox", "never"); err != nil {
		t.Errorf("deleting an unknown record: %v", err)
	}
	_ = j.Close()

	got, err := open(t, path).List(ctx, "sandbox")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].ID != "a" || string(got[0].Data) != `{"dir":"/d/a"}` || got[0].At.IsZero() {
		t.Errorf("List = %+v", got)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is elsewhere: %v", err)
	}
}

func TestIdentityIsStable(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "j.db")
	for i := range 3 {
		j := open(t, path)
		id, err := j.Identity(ctx, func() string { return fmt.Sprintf("id%d", i) })
		if err != nil || id != "id0" {
			t.Fatalf("opening %d: identity %q, %v", i, id, err)
		}
		_ = j.Close()
	}
}

// A process that is killed right after Put returned has lost nothing.
func TestKilledWriterLosesNothing(t *testing.T) {
	const env = "JOURNAL_TEST_CHILD"
	if path := os.Getenv(env); path != "" {
		j := open(t, path)
		for i := 0; ; i++ {
			if err := j.Put(context.Background(), "r", fmt.Sprintf("%06d", i), i); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("acked %06d\n", i)
		}
	}
	path := filepath.Join(t.TempDir(), "j.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriterLosesNothing$")
		cmd.Env = append(os.Environ(), env+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var last string
		sc := bufio.NewScanner(out)
		for n := 0; sc.Scan(); n++ {
			if id, ok := strings.CutPrefix(sc.Text(), "acked "); ok {
				last = id
			}
			if n == 40*(round+1) {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		recs, err := open(t, path).List(context.Background(), "r")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range recs {
			found = found || r.ID == last
		}
		if last == "" || !found {
			t.Fatalf("round %d: acknowledged record %q is gone (%d records)", round, last, len(recs))
		}
	}
}
