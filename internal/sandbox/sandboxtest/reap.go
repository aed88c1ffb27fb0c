package sandboxtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// ownerEnv holds the job of a test binary that was started as an owner.
const ownerEnv = "SKEP_SANDBOXTEST_OWNER"

// ownerJob is what an owner does before it is killed.
type ownerJob struct {
	Spec   sandbox.Spec // without files
	Stdout string
	Stage  string // "creating", "created", "starting", "started", "exited", "saving" or "destroying"
	// Restore, if set, says how to prepare the sandbox, which is created otherwise.
	Restore *sandbox.Restore
	SaveDir string
}

const ownerReady = "sandboxtest: owner is ready"

func testReap(t *testing.T, s *suite) {
	for _, stage := range []string{"creating", "created", "starting", "started", "exited", "destroying"} {
		t.Run(stage, func(t *testing.T) {
			b := s.prepare(t, false, func(spec *sandbox.Spec) {
				if stage == "exited" {
					spec.Process.Args = []string{"/guest", "exit", "0"}
				}
			})
			b.killOwner(t, stage, "")
		})
	}
	t.Run("Nothing", func(t *testing.T) {
		b := s.prepare(t, false, nil)
		state := b.spec.State()
		if err := s.driver.Reap(s.ctx(t), state); err != nil {
			t.Errorf("Reap of a sandbox that never was: %v", err)
		}
		state.Dir += "-missing"
		if err := s.driver.Reap(s.ctx(t), state); err != nil {
			t.Errorf("Reap of a sandbox whose directory is gone: %v", err)
		}
	})
	t.Run("Neighbour", func(t *testing.T) {
		live, dead := s.serve(t, nil), s.start(t, nil)
		if err := s.driver.Reap(s.ctx(t), dead.spec.State()); err != nil {
			t.Errorf("Reap: %v", err)
		}
		live.get(t, "/args", nil)
	})
}

// killOwner has an owner bring the sandbox to the stage, kills the owner, and
// reaps.
func (b *box) killOwner(t *testing.T, stage, saveDir string) {
	t.Helper()
	owner := startOwner(t, b, stage, saveDir)
	switch stage {
	case "creating", "starting", "saving": // somewhere in the middle
		time.Sleep(rand.N(100 * time.Millisecond))
	}
	// SIGKILL, as from the kernel: the owner can clean up nothing.
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // "signal: killed"
	if stage == "started" {
		// It is still there, or this test shows nothing; which part of
		// it outlives its owner is the driver's business.
		t.Logf("after the owner's death: %v", leftBehind(b.spec.State()))
	}
	for i := range 2 {
		if err := b.s.driver.Reap(b.s.ctx(t), b.spec.State()); err != nil {
			t.Errorf("Reap, call %d: %v", i+1, err)
		}
	}
	b.checkGone(t)
	files, err := os.ReadDir(b.spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("left behind: %s", filepath.Join(b.spec.Dir, f.Name()))
	}
}

// startOwner starts this test binary as an owner and waits until it has
// reached the stage.
func startOwner(t *testing.T, b *box, stage, saveDir string) *exec.Cmd {
	t.Helper()
	job := ownerJob{Spec: *b.spec, Stage: stage, Stdout: b.spec.Stdout.Name(), Restore: b.restore, SaveDir: saveDir}
	job.Spec.Stdout, job.Spec.Stderr = nil, nil
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	top, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+regexp.QuoteMeta(top)+"$", "-test.v")
	// What it makes in folders for temporary files, it cannot remove either.
	// This one is short enough for the addresses of sockets in it.
	tmp, err := os.MkdirTemp(b.s.dir, "owner-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(tmp); err != nil {
			t.Errorf("left behind by the owner: %v", err)
		}
	})
	cmd.Env = append(os.Environ(), ownerEnv+"="+string(text), "TMPDIR="+tmp)
	// A file would do for the output, but a pipe says at once when it died.
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	ready := make(chan error, 1)
	go func() {
		var said strings.Builder
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			if strings.Contains(sc.Text(), ownerReady) {
				ready <- nil
				return
			}
			said.WriteString(sc.Text() + "\n")
		}
		ready <- fmt.Errorf("the owner ended before it was ready: %s", said.String())
	}()
	select {
	case err = <-ready:
	case <-b.s.ctx(t).Done():
		err = fmt.Errorf("the owner was not ready in time")
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Error(err)
	}
	return cmd
}

// runOwner is the life of an owner, until it is killed.
func runOwner(t *testing.T, newDriver func(t *testing.T) sandbox.Driver, text string) {
	var job ownerJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	spec := &job.Spec
	out, err := os.OpenFile(job.Stdout, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	spec.Stdout, spec.Stderr = out, out
	b := &box{s: &suite{driver: newDriver(t)}, spec: spec, restore: job.Restore}
	ctx := context.Background()
	if job.Stage == "creating" { // killed in the middle of it
		fmt.Println(ownerReady)
	}
	sb, err := b.make(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if job.Stage == "starting" {
		fmt.Println(ownerReady)
	}
	if job.Stage != "created" {
		if err := sb.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	switch job.Stage {
	case "exited":
		if _, err := sb.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	case "saving":
		fmt.Println(ownerReady)
		_ = sb.(sandbox.Saver).Save(ctx, sandbox.SaveOptions{Dir: job.SaveDir})
	case "destroying":
		fmt.Println(ownerReady)
		_ = sb.Destroy(ctx)
	}
	fmt.Println(ownerReady)
	<-time.After(24 * time.Hour) // select{} would be taken for a deadlock
}
