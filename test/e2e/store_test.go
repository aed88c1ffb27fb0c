package e2e

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// objectStore serves buckets to those that sign with the key, and counts the
// requests of others.
func objectStore(t *testing.T, key string, buckets ...string) (url string, refused *atomic.Int64) {
	t.Helper()
	store := s3mem.New()
	for _, b := range buckets {
		if err := store.CreateBucket(b); err != nil {
			t.Fatal(err)
		}
	}
	refused = &atomic.Int64{}
	inner := gofakes3.New(store).Server()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+key+"/") {
			refused.Add(1)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, refused
}

// TestObjectStore: snapshots live in an object store, go to another one and
// come back from it to a node that has nothing else.
func TestObjectStore(t *testing.T) {
	t.Parallel()
	const key = "AKIDSKEPTEST"
	url, refused := objectStore(t, key, "main", "other")
	query := "?endpoint=" + url + "&region=us-east-1"
	s := prepared(t, "--idle-after", "1s", "--sandbox", "gvisor", "--snapshot-restore-mode", "always", "--snapshot-wait", "30s", "--snapshot-store", "s3://main/node"+query)
	s.Env = []string{"AWS_ACCESS_KEY_ID=" + key, "AWS_SECRET_ACCESS_KEY=secret"}
	const name = "stored"
	s.up()
	first := s.service(name)
	made := s.stored(name)
	s.atZero(name)
	if got, start := s.inside(name); start != "restored" || got.Born != first.Born {
		t.Errorf("from zero: %+v (%s)", got, start)
	}
	s.ok("snapshot", "verify", made.ID)
	if text := s.ok("snapshot", "push", made.ID, "s3://other/backup"+query); !strings.Contains(text, strings.TrimPrefix(made.ID, "sha256:")[:12]) {
		t.Errorf("push:\n%s", text)
	}
	// The next node has the bucket, and nothing else.
	s.afresh()
	s.up()
	again := s.service(name)
	if again.Born != first.Born {
		t.Errorf("a fresh node with the same store: %+v, want a restore of %+v", again, first)
	}
	if list := s.snapshots(name); len(list) != 1 || list[0].ID != made.ID {
		t.Errorf("a fresh node lists %+v, want %s", list, made.ID)
	}
	// The next one not even that: it pulls what the first had pushed.
	s.ok("snapshot", "delete", made.ID)
	s.afresh()
	s.up()
	if list := s.snapshots(name); len(list) != 0 {
		t.Errorf("deleted, but listed: %+v", list)
	}
	s.ok("snapshot", "pull", made.ID, "s3://other/backup"+query)
	if got := s.service(name); got.Born != first.Born {
		t.Errorf("pulled: %+v, want a restore of %+v", got, first)
	}
	if n := refused.Load(); n > 0 {
		t.Errorf("%d requests were not signed with the key from the environment", n)
	}
}

// service imports and deploys the probe, and asks it.
func (s *skep) service(name string) inside {
	s.t.Helper()
	s.importProbe()
	s.deployAs(name, probeRef)
	got, _ := s.inside(name)
	return got
}

// afresh stops the daemon and removes all it has on this machine.
func (s *skep) afresh() {
	s.t.Helper()
	if err := s.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.wantNothingLeft()
	if err := os.RemoveAll(s.Dir); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
}
