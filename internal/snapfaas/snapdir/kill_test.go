package snapdir

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// killed names the folder in which this program, called again, is to be killed.
const killed = "SKEP_TEST_SNAPDIR_KILLED"

// TestKilled kills a process while it writes a snapshot: the folder has what it
// had, nobody else can write meanwhile, and the next one removes the half.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killed); dir != "" {
		err := Write(dir, Meta{ID: "half", Point: guest.App}, func(tmp string) error {
			if err := os.WriteFile(filepath.Join(tmp, sandbox.FileMemory), []byte("half"), 0o600); err != nil {
				return err
			}
			fmt.Println("half")
			select {}
		})
		t.Fatal(err)
	}
	for _, test := range []struct{ name, dir, want string }{
		{"over a snapshot", write(t, "old", ""), ""},
		{"empty", t.TempDir(), "no snapshot in it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
			cmd.Env = append(os.Environ(), killed+"="+test.dir)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "half\n" {
				t.Errorf("%q, %v", line, err)
			}
			if err := fill(test.dir, "new", ""); err == nil || !strings.Contains(err.Error(), "another snapshot is being written") {
				t.Errorf("at the same time: %v", err)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if half, err := filepath.Glob(filepath.Join(test.dir, newPrefix+"*")); err != nil || len(half) != 1 {
				t.Errorf("%q, %v: it was killed at another moment", half, err)
			}
			s, err := Open(test.dir)
			switch {
			case test.want == "" && (err != nil || s.ID != "old"):
				t.Errorf("after the kill: %+v, %v", s, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("after the kill: %v, want %q", err, test.want)
			}
			if err := fill(test.dir, "new", ""); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(test.dir); err != nil || s.ID != "new" {
				t.Errorf("the next one: %+v, %v", s, err)
			}
			if files, err := os.ReadDir(test.dir); err != nil || len(files) != 2 {
				t.Errorf("left: %v, %v", files, err)
			}
		})
	}
}

// TestInterrupted stops replace in the middle, as the machine's end would: no
// half is taken for a snapshot.
func TestInterrupted(t *testing.T) {
	tmp := func(dir string) string {
		d := filepath.Join(dir, newPrefix+"x")
		for name, content := range map[string]string{"memory": "new", "state": "new", metaName: `{"version":1,"id":"new","point":"app"}`} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(d, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	// A folder in the place of one of the old files is where replace stops.
	for _, name := range []string{"memory", "state"} {
		dir := write(t, "old", "")
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		folder, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		if err := replace(tmp(dir), folder); err == nil {
			t.Fatal("no error")
		}
		if s, err := Open(dir); err == nil || !strings.Contains(err.Error(), "no snapshot in it") {
			t.Errorf("stopped at %s: %+v, %v", name, s, err)
		}
	}
}
