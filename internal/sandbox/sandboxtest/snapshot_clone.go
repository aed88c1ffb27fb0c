package sandboxtest

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/sandbox"
)

var machineID = regexp.MustCompile(`^[0-9a-f]{32}\n$`)

// testModes restores several clones at the same time in each mode.
func (sn *snapshots) testModes(t *testing.T) {
	time.Sleep(time.Until(sn.taken.Add(snapshotAge))) // for the clocks
	for _, mode := range sn.driver.Capabilities().RestoreModes {
		t.Run(string(mode), func(t *testing.T) {
			// One of them without the working set, if there is one.
			sn.clones(t, mode, []sandbox.Image{sn.image, {Dirs: sn.image.Dirs}, sn.image})
		})
	}
}

// clones restores a sandbox from each of the images, all at the same time.
func (sn *snapshots) clones(t *testing.T, mode sandbox.RestoreMode, images []sandbox.Image) {
	boxes := make([]*box, len(images))
	for i, image := range images {
		boxes[i] = sn.clone(t, sandbox.Restore{Image: image, Mode: mode}, fmt.Sprint("clone-", i))
	}
	ctx := sn.ctx(t)
	g := new(errgroup.Group)
	for _, b := range boxes {
		g.Go(func() (err error) {
			begin := time.Now()
			if b.sb, err = b.make(ctx); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
			prepared := time.Now()
			if err := b.sb.Start(ctx); err != nil {
				return fmt.Errorf("start: %w", err)
			}
			started := time.Now()
			// No second try: the contract says that work may come now.
			if _, err := b.try(ctx, "/args", nil); err != nil {
				return fmt.Errorf("first request: %w", err)
			}
			t.Logf("prepared in %v, started in %v, answered in %v", prepared.Sub(begin), started.Sub(prepared), time.Since(started))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, b := range boxes {
		b.checkDrift(t)
		sn.checkIdentity(t, b, t.Name()+" "+b.spec.Hostname)
	}
	states := make([]guestState, len(boxes))
	for i, b := range boxes {
		states[i] = sn.state
		b.check(t, &states[i])
	}
	// From here on each goes its own way.
	for i, b := range boxes {
		for range i {
			b.get(t, "/count", &states[i].count)
		}
		states[i].own = "clone's own " + b.spec.Hostname
		b.get(t, "/write", nil, "path", "/srv/own", "data", states[i].own)
		b.get(t, "/remember", &states[i].sum, "mb", fmt.Sprint(snapshotMB), "seed", fmt.Sprint(10+i))
		b.get(t, "/print", nil, "text", "printed by "+b.spec.Hostname)
	}
	for i, b := range boxes {
		b.check(t, &states[i])
		b.waitOutput(t, "stdout", "printed by "+b.spec.Hostname+"\n")
		for _, out := range []string{b.output(t, "stdout"), sn.base.output(t, "stdout")} {
			if n := strings.Count(out, "printed by"); n > 1 || out != b.output(t, "stdout") && n > 0 {
				t.Errorf("another sandbox's output is in %q", out)
			}
		}
	}
	if phases := boxes[0].sb.Phases(); len(phases) == 0 {
		t.Error("Phases() is empty")
	} else {
		t.Logf("phases: %v", phases)
	}
}

// checkIdentity checks what a restored sandbox must not share with the one
// that was saved, nor with other clones.
func (sn *snapshots) checkIdentity(t *testing.T, b *box, who string) {
	t.Helper()
	sn.unique(t, b, who)
	var id identity
	if b.get(t, "/id", &id); id.Hostname != b.spec.Hostname {
		t.Errorf("%s: hostname %q, want %q", who, id.Hostname, b.spec.Hostname)
	}
	var text string
	b.get(t, "/read", &text, "path", "/etc/machine-id")
	if !machineID.MatchString(text) {
		t.Errorf("%s: machine ID %q, want 32 hexadecimal digits", who, text)
	} else if other, ok := sn.seen[text]; ok {
		t.Errorf("%s: machine ID %q, as %s", who, text, other)
	}
	sn.seen[text] = who
	var addrs []string
	if b.get(t, "/resolve", &addrs, "name", b.spec.Hostname); len(addrs) == 0 || addrs[0] != b.spec.Link.Address.IP.String() {
		t.Errorf("%s: the own name resolves to %q, want %s", who, addrs, b.spec.Link.Address.IP)
	}
	var nanos int64
	before := time.Now()
	b.get(t, "/now", &nanos)
	after, clock := time.Now(), time.Unix(0, nanos)
	t.Logf("%s: the clock is %v after the question, the answer %v", who, clock.Sub(before), after.Sub(before))
	if clock.Before(before.Add(-clockError)) || clock.After(after.Add(clockError)) {
		t.Errorf("%s: the clock is wrong by %v", who, clock.Sub(before))
	}
}

// testPrepared has sandboxes wait to be restored, in each mode, and as far
// ahead as it goes.
func (sn *snapshots) testPrepared(t *testing.T) {
	var boxes []*box
	for _, mode := range sn.driver.Capabilities().RestoreModes {
		name := strings.ReplaceAll(string(mode), "+", "-")
		for prefix, ahead := range map[string]bool{"prepared-": false, "ahead-": true} {
			b := sn.clone(t, sandbox.Restore{Image: sn.image, Mode: mode, Ahead: ahead, Port: guestPort}, prefix+name)
			b.create(t)
			boxes = append(boxes, b)
		}
	}
	begin := time.Now()
	for _, b := range boxes {
		if e, err := b.sb.Exec(sn.ctx(t), sandbox.Exec{Process: sandbox.Process{Args: []string{"/guest", "id"}}}); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Exec before Start: %+v, %v, want ErrNotRunning", e, err)
		}
		if err := b.sb.Signal(sn.ctx(t), syscall.SIGTERM); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Signal before Start: %v, want ErrNotRunning", err)
		}
		if c, err := b.sb.Dial(sn.ctx(t), guestPort); err == nil {
			c.Close()
			t.Error("Dial before Start succeeded")
		}
	}
	time.Sleep(time.Until(begin.Add(clockError + time.Second))) // for the clocks
	for _, b := range boxes {
		if st, err := b.sb.Stats(sn.ctx(t)); err != nil || st.MemoryBytes <= 0 {
			t.Errorf("Stats before Start: %+v, %v", st, err)
		} else {
			t.Logf("sandbox %s holds %d KiB while it waits", b.spec.Hostname, st.MemoryBytes>>10)
		}
		if b.output(t, "stdout") != "" {
			t.Errorf("sandbox %s runs before Start: %s", b.spec.Hostname, b.output(t, "stdout"))
		}
		b.start(t)
		sn.checkIdentity(t, b, t.Name()+" "+b.spec.Hostname)
		state := sn.state
		b.check(t, &state)
		if err := b.sb.Start(sn.ctx(t)); err == nil {
			t.Error("a second Start succeeded")
		}
		b.get(t, "/args", nil)

		never := sn.clone(t, *b.restore, "never")
		never.create(t)
		never.destroy(t)
		never.checkGone(t)
		if err := never.sb.Start(sn.ctx(t)); err == nil {
			t.Error("Start after Destroy succeeded")
		}
	}
}

// testLives does with a restored sandbox what one does with any.
func (sn *snapshots) testLives(t *testing.T) {
	b := sn.restored(t, "lives")
	sn.opts.Inspect(t, b.spec.State())
	before, err := b.sb.Stats(sn.ctx(t))
	if err != nil || before.MemoryBytes <= 0 || before.CPUTime <= 0 {
		t.Errorf("Stats: %+v, %v", before, err)
	}
	e, out, errOut, err := b.exec(t, sandbox.Process{Args: []string{"guest", "echo", "a", "b  c"}}, nil)
	if err != nil || e.Code != 0 || out != "a b  c\n" || errOut != "2\n" {
		t.Errorf("Exec: %+v, stdout %q, stderr %q, %v", e, out, errOut, err)
	}
	if e, _, _, err := b.exec(t, sandbox.Process{Args: []string{"/guest", "exit", "9"}}, nil); err != nil || e.Code != 9 {
		t.Errorf("Exec of exit 9: %+v, %v", e, err)
	}
	b.get(t, "/burn", nil, "ms", "200")
	if after, err := b.sb.Stats(sn.ctx(t)); err != nil || after.CPUTime <= before.CPUTime {
		t.Errorf("Stats after work: %+v, before %+v, %v", after, before, err)
	}
	for i := range 5 {
		if i%2 == 0 {
			b.http.CloseIdleConnections()
		}
		b.get(t, "/args", nil)
	}
	// A program that reads while it is sent to, on a restored network.
	testEvents(t, b)
	if err := b.sb.Signal(sn.ctx(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(t); e.Code != 42 || e.Signal != 0 {
		t.Errorf("ended with %+v, want code 42", e)
	}
	b.waitOutput(t, "stdout", "guest: terminated\n")

	b = sn.restored(t, "exits")
	_, _ = b.try(sn.ctx(t), "/exit?code=5", nil)
	if e := b.wait(t); e.Code != 5 || e.OOMKilled {
		t.Errorf("ended with %+v, want code 5", e)
	}
}

// testLimits checks that limits hold for what was restored.
func (sn *snapshots) testLimits(t *testing.T) {
	b := sn.restored(t, "hog")
	var f struct {
		Started int
		Error   string
	}
	if b.get(t, "/fork", &f, "n", "500"); f.Started > snapshotPIDs || f.Error == "" || f.Started < snapshotPIDs/4 {
		t.Errorf("fork bomb with a limit of %d: %+v", snapshotPIDs, f)
	}
	var full struct {
		Bytes  int64
		ENOSPC bool
	}
	b.get(t, "/fill", &full, "path", "/srv/big", "mb", fmt.Sprint(sn.opts.DiskBytes>>20+32))
	if !full.ENOSPC || full.Bytes > sn.opts.DiskBytes || full.Bytes < sn.opts.DiskBytes/2 {
		t.Errorf("writing to a disk of %d bytes: %+v, want ENOSPC near its end", sn.opts.DiskBytes, full)
	}
	ctx := sn.ctx(t)
	if body, err := b.try(ctx, fmt.Sprintf("/hog?mb=%d", 4*sn.opts.MemoryBytes>>20), nil); err == nil {
		t.Errorf("taking four times the memory: %s", body)
	} else if ctx.Err() != nil {
		t.Fatalf("taking four times the memory: neither refused nor killed: %v", err)
	}
	if e := b.wait(t); !e.OOMKilled || e.Code == 0 {
		t.Errorf("hog ended with %+v, want OOMKilled and a code", e)
	}
}
