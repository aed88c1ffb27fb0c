package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/admin"
)

// retention lets an instance wait for several requests on a busy machine.
const retention = "autoscaling.knative.dev/scale-to-zero-pod-retention-period"

// inside is what the probe tells of its memory.
type inside struct {
	Born, Host string
	Count      int
	Hooks      []string
}

func (s *skep) inside(service string) (inside, string) {
	s.t.Helper()
	r := s.get(service, "/state")
	return decode[inside](s.t, r.body), r.Header.Get("X-Skep-Start")
}

// annotated deploys the probe with annotations and returns its name.
func (s *skep) annotated(prefix, driver string, annotations map[string]string) string {
	s.t.Helper()
	return s.annotatedMode(prefix, driver, "", annotations)
}

// annotatedMode does, with the probe in one of its modes.
func (s *skep) annotatedMode(prefix, driver, mode string, annotations map[string]string) string {
	s.t.Helper()
	name := unique(prefix)
	s.deleteAtEnd(name)
	var lines strings.Builder
	for k, v := range annotations {
		fmt.Fprintf(&lines, "        %s: %q\n", k, v)
	}
	s.ok("deploy", "-f", write(s.t, name+".yaml", fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    metadata:
      annotations:
        skep.dev/sandbox: %s
%s    spec: {containers: [{image: %s, env: [{name: MODE, value: %q}]}]}
`, name, driver, lines.String(), probeRef, mode)))
	return name
}

func (s *skep) snapshots(service string) []admin.Snapshot {
	s.t.Helper()
	all := decode[[]admin.Snapshot](s.t, s.ok("snapshot", "list", "-o", "json"))
	return slices.DeleteFunc(all, func(x admin.Snapshot) bool { return x.Service != service })
}

// stored waits until a service has a snapshot in the store, but for those that
// it is a difference from.
func (s *skep) stored(service string) admin.Snapshot {
	s.t.Helper()
	var found []admin.Snapshot
	eventually(s.t, "a snapshot of "+service, func() string {
		all := s.snapshots(service)
		found = slices.DeleteFunc(slices.Clone(all), func(x admin.Snapshot) bool {
			return slices.ContainsFunc(all, func(y admin.Snapshot) bool { return y.Parent == x.ID })
		})
		if len(found) != 1 {
			return fmt.Sprintf("%d snapshots", len(found))
		}
		return ""
	})
	return found[0]
}

// damage changes every file below a folder that is larger than a page.
func damage(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() < 4096 {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte("damaged"), info.Size()/2)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSnapshots: from deployed to restored, whatever the policy, and to booted
// again when the snapshots are damaged.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--snapshot-pool", "0", "--snapshot-restore-mode", "always").importProbe()
	for _, driver := range restorers {
		t.Run(driver, func(t *testing.T) {
			s := &skep{s.Skep, t}
			t.Run("after-ready", func(t *testing.T) { (&skep{s.Skep, t}).afterReady(driver) })
			if driver == "qemu" {
				return // it is the node that does the rest, and a boot takes long
			}
			t.Run("damage", func(t *testing.T) { (&skep{s.Skep, t}).damaged(driver) })
			t.Run("after-n", func(t *testing.T) { (&skep{s.Skep, t}).afterN(driver) })
			t.Run("at-scale-down", func(t *testing.T) { (&skep{s.Skep, t}).atScaleDown(driver) })
			t.Run("hooks", func(t *testing.T) { (&skep{s.Skep, t}).hooks(driver) })
			t.Run("signals", func(t *testing.T) { (&skep{s.Skep, t}).signalled(driver) })
			t.Run("off", func(t *testing.T) {
				s := &skep{s.Skep, t}
				name := s.annotated("off", driver, map[string]string{"skep.dev/snapshot-policy": "off"})
				s.atZero(name)
				if _, start := s.inside(name); start != "booted" {
					t.Errorf("without snapshots: %s", start)
				}
			})
		})
	}
	t.Run("commands", func(t *testing.T) { (&skep{s.Skep, t}).snapshotCommands() })
	metrics := s.metrics()
	for _, want := range []string{
		`skep_snapshot_restores_total{result="damaged"}`, `skep_snapshot_saves_total{result="ok"}`,
		`kind="restored"`, `skep_cold_start_phase_seconds_bucket{kind="restored"`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func (s *skep) afterReady(driver string) {
	t := s.t
	name := s.annotated("ready", driver, nil)
	first, start := s.inside(name)
	if start == "booted" || first.Count != 1 { // restored, if it took us long
		t.Errorf("the first request: %+v, %s", first, start)
	}
	hosts := []string{first.Host}
	for range 2 {
		s.atZero(name)
		got, start := s.inside(name)
		if start != "restored" || got.Born != first.Born || got.Count != 1 {
			t.Errorf("restored as %+v (%s), want the state of %+v before its first request", got, start, first)
		}
		if slices.Contains(hosts, got.Host) {
			t.Errorf("the host name %s is that of an earlier instance", got.Host)
		}
		hosts = append(hosts, got.Host)
	}
	if snap := s.stored(name); snap.Policy != "after-ready" || snap.Driver != driver || snap.Local == 0 {
		t.Errorf("snapshot: %+v", snap)
	}
	s.ok("delete", name)
	eventually(t, "the snapshots of a deleted service to go", func() string {
		if n := len(s.snapshots(name)); n > 0 {
			return fmt.Sprintf("%d are there", n)
		}
		return ""
	})
}

func (s *skep) afterN(driver string) {
	t := s.t
	name := s.annotated("after", driver, map[string]string{"skep.dev/snapshot-policy": "after-n=3", retention: "6s"})
	for range 3 {
		s.inside(name)
	}
	s.stored(name)
	if got, start := s.inside(name); start != "warm" || got.Count != 4 {
		t.Errorf("the instance goes on with %+v (%s)", got, start)
	}
	s.atZero(name)
	if got, start := s.inside(name); start != "restored" || got.Count != 4 {
		t.Errorf("restored as %+v (%s), want it to have counted 3 requests", got, start)
	}
}

func (s *skep) atScaleDown(driver string) {
	t := s.t
	name := s.annotated("down", driver, map[string]string{"skep.dev/snapshot-policy": "at-scale-down", retention: "6s"})
	s.inside(name)
	s.inside(name)
	s.atZero(name)
	if got, start := s.inside(name); start != "restored" || got.Count != 3 {
		t.Errorf("restored as %+v (%s), want it to have counted 2 requests", got, start)
	}
}

func (s *skep) hooks(driver string) {
	t := s.t
	name := s.annotated("hooks", driver, map[string]string{
		"skep.dev/snapshot-before-path": "/hook/before", "skep.dev/snapshot-after-path": "/hook/after",
	})
	want := []string{"POST /hook/before", "POST /hook/after"}
	if got, _ := s.inside(name); !slices.Equal(got.Hooks, want) {
		t.Errorf("the instance that was saved: hooks %v", got.Hooks)
	}
	s.atZero(name)
	if got, start := s.inside(name); start != "restored" || !slices.Equal(got.Hooks, want) {
		t.Errorf("restored (%s): hooks %v", start, got.Hooks)
	}
	// A function that refuses gets no snapshot, and no harm.
	name = s.annotated("refuses", driver, map[string]string{"skep.dev/snapshot-before-path": "/hook/bad"})
	s.atZero(name)
	if _, start := s.inside(name); start != "booted" || len(s.snapshots(name)) > 0 {
		t.Errorf("a function that refused: %s, %d snapshots", start, len(s.snapshots(name)))
	}
}

// signalled: a function without an HTTP path of its own for it is told by
// signals. They are sent and not waited for, so it may be asked too soon.
func (s *skep) signalled(driver string) {
	t := s.t
	name := s.annotated("signals", driver, map[string]string{
		"skep.dev/snapshot-before-signal": "SIGUSR1", "skep.dev/snapshot-after-signal": "USR2", retention: "6s",
	})
	want := []string{"user defined signal 1", "user defined signal 2"}
	told := func(kind string) {
		t.Helper()
		var began string
		eventually(t, "the signals to be there", func() string {
			got, start := s.inside(name)
			if began == "" {
				began = start
			}
			if !slices.Equal(got.Hooks, want) {
				return fmt.Sprint(got.Hooks)
			}
			return ""
		})
		if began != kind {
			t.Errorf("the first request: %s, want %s", began, kind)
		}
	}
	told("warm")
	s.atZero(name)
	told("restored")
}

func (s *skep) metrics() string {
	s.t.Helper()
	resp, err := http.Get("http://" + s.Endpoints.Metrics + "/metrics") //nolint:noctx // a test's
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func (s *skep) damaged(driver string) {
	t := s.t
	name := s.annotated("damage", driver, nil)
	first, _ := s.inside(name)
	s.stored(name)
	s.atZero(name)
	// Only the files to restore from: there is another copy in the store.
	damage(t, filepath.Join(s.Dir, "snapshots", "local"))
	if got, start := s.inside(name); start == "restored" && got.Born != first.Born {
		t.Errorf("restored as %+v", got)
	}
	s.wantEvent(name, "SnapshotDamaged")
	s.atZero(name)
	damage(t, filepath.Join(s.Dir, "snapshots", "local"))
	damage(t, filepath.Join(s.Dir, "snapshots", "store", "chunks"))
	got, start := s.inside(name)
	if start != "booted" || got.Born == first.Born {
		t.Errorf("with all damaged: %+v (%s), want another one booted", got, start)
	}
}

func (s *skep) wantEvent(service, reason string) {
	s.t.Helper()
	eventually(s.t, "event "+reason, func() string {
		out, err := s.kubectl("", "get", "events", "-o", "jsonpath={range .items[*]}{.involvedObject.name} {.reason}{\"\\n\"}{end}")
		if err != nil || !strings.Contains(out, service+" "+reason+"\n") {
			return out
		}
		return ""
	})
}

// damagedStore: verify finds what is damaged, exits with 1, and removes it if
// asked to.
func (s *skep) damagedStore(name string) {
	t := s.t
	s.inside(name)
	s.ok("snapshot", "create", name)
	s.ok("snapshot", "verify", s.stored(name).ID)
	damage(t, filepath.Join(s.Dir, "snapshots", "store", "chunks"))
	id := s.stored(name).ID
	for _, args := range [][]string{{"--all"}, {id}, {"--all", "--remove"}} {
		s.fails(1, []string{"cannot be used"}, append([]string{"snapshot", "verify"}, args...)...)
	}
	s.fails(3, []string{"no such snapshot"}, "snapshot", "verify", id)
}

func (s *skep) snapshotCommands() {
	t := s.t
	name := s.deploy("commands", "--sandbox", "gvisor")
	s.inside(name)
	made := decode[admin.Snapshot](t, s.ok("snapshot", "create", name, "-o", "json"))
	if made.Service != name || made.ID == "" {
		t.Fatalf("create: %+v", made)
	}
	short := strings.TrimPrefix(made.ID, "sha256:")[:10]
	if got, _ := s.inside(name); got.Count != 2 {
		t.Errorf("the instance does not go on: %+v", got)
	}
	if list := s.ok("snapshot", "list"); !strings.Contains(list, short) || !strings.Contains(list, name) {
		t.Errorf("list:\n%s", list)
	}
	if text := s.ok("snapshot", "describe", short); !strings.Contains(text, "layer memory") || !strings.Contains(text, "gvisor") {
		t.Errorf("describe:\n%s", text)
	}
	if text := s.ok("snapshot", "diff", short, short); !strings.Contains(text, "memory") {
		t.Errorf("diff:\n%s", text)
	}
	other := filepath.Join(s.Dir, "other")
	if text := s.ok("snapshot", "push", short, other); !strings.Contains(text, short) {
		t.Errorf("push:\n%s", text)
	}
	if text := s.ok("snapshot", "verify", short); !strings.Contains(text, "whole") {
		t.Errorf("verify:\n%s", text)
	}
	if text := s.ok("snapshot", "compact", short); !strings.Contains(text, "1 already") {
		t.Errorf("compact of a whole one:\n%s", text)
	}
	if gone := decode[[]struct{ ID string }](t, s.ok("snapshot", "delete", short, "-o", "json")); len(gone) != 1 || gone[0].ID != short {
		t.Errorf("delete: %+v", gone)
	}
	s.fails(3, []string{"no such snapshot", "skep snapshot list"}, "snapshot", "describe", short)
	s.ok("snapshot", "pull", short, other)
	s.ok("snapshot", "describe", short)
	s.ok("snapshot", "prune", "--limit", "16Gi")
	s.ok("snapshot", "prune", "--all")
	if left := s.snapshots(name); len(left) > 0 {
		t.Errorf("after prune --all: %+v", left)
	}
	s.damagedStore(name)
	s.fails(2, []string{"no such folder"}, "snapshot", "pull", short, filepath.Join(s.Dir, "mistyped"))
	s.fails(2, []string{"endpoint"}, "snapshot", "push", short, "s3://bucket")
	s.fails(2, []string{"size such as"}, "snapshot", "prune", "--limit", "much")
	s.fails(2, []string{"name IDs or use --all"}, "snapshot", "verify")
	s.fails(3, []string{"skep list"}, "snapshot", "create", "nobody")
	for annotation, value := range map[string]string{
		"skep.dev/snapshot-policy": "sometimes", "skep.dev/snapshot-restore": "fast", "skep.dev/snapshot-pool": "-1",
		"skep.dev/snapshot-before-path": "no path", "skep.dev/snapshot-after-signal": "KILL", "skep.dev/snapshot-hook-timeout": "1h",
	} {
		file := write(t, "bad.yaml", fmt.Sprintf("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: bad}\nspec: {template: {metadata: {annotations: {%s: %q}}, spec: {containers: [{image: %s}]}}}\n", annotation, value, probeRef))
		s.fails(2, []string{annotation}, "deploy", "-f", file)
	}
	s.fails(4, []string{"runc", "no snapshots"}, "deploy", "-f", write(t, "runc.yaml", fmt.Sprintf("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: cannot}\nspec: {template: {metadata: {annotations: {skep.dev/sandbox: runc, skep.dev/snapshot-policy: after-ready}}, spec: {containers: [{image: %s}]}}}\n", probeRef)))
}
