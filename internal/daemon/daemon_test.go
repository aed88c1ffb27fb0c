package daemon

import (
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		want string // in the error; "" means none
		edit func(*Config)
	}{
		{"", func(*Config) {}},
		{"--listen", func(c *Config) { c.Listen = "8080" }},
		{"--api-listen", func(c *Config) { c.APIListen = "127.0.0.1:99999" }},
		{"loopback", func(c *Config) { c.RegistryListen = "0.0.0.0:5000" }},
		{"loopback", func(c *Config) { c.MetricsListen = "localhost:9090" }},
		{"--sandbox", func(c *Config) { c.Sandbox = "docker" }},
		{"--pool-size", func(c *Config) { c.PoolSize = -1 }},
		{"--idle-after", func(c *Config) { c.IdleAfter = time.Millisecond }},
		{"--snapshot-diffs", func(c *Config) { c.SnapshotDiffs = 9 }},
		{"--snapshot-pool-memory", func(c *Config) { c.SnapshotPoolMemory = 1 }},
		{"--snapshot-limit", func(c *Config) { c.SnapshotLimit = 1 }},
		{"--snapshot-wait", func(c *Config) { c.SnapshotWait = 0 }},
		{"--snapshot-store", func(c *Config) { c.SnapshotStore = "s3://bucket" }},
		{"--snapshot-working-set", func(c *Config) { c.SnapshotWorkingSet = "all" }},
		{"--snapshot-pool", func(c *Config) { c.SnapshotPool = "many" }},
		{"too long", func(c *Config) { c.Run = "/" + strings.Repeat("x", 100) }},
	} {
		c := DefaultConfig()
		tt.edit(&c)
		err := c.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Validate() = %v, want %q", err, tt.want)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	release, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second lock: %v", err)
	}
	release()
	release, err = lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestEndpoints(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadEndpoints(dir); err == nil || !strings.Contains(err.Error(), "skep up") {
		t.Errorf("without a daemon: %v", err)
	}
	want := Endpoints{PID: 1, Gateway: "127.0.0.1:1", NodeID: "01234567", Domain: "d"}
	if err := want.write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := ReadEndpoints(dir)
	if err != nil || *got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
}
