package s3

import (
	"context"
	"net/http/httptest"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/backendtest"
)

func serve(t *testing.T) Config {
	store := s3mem.New()
	if err := store.CreateBucket("snapshots"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(store).Server())
	t.Cleanup(srv.Close)
	return Config{Endpoint: srv.URL, Region: "us-east-1", Bucket: "snapshots", Prefix: "node/a", AccessKey: "k", SecretKey: "s"}
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b, err := Open(context.Background(), serve(t))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestOpenRefuses(t *testing.T) {
	good := serve(t)
	for name, change := range map[string]func(*Config){
		"no scheme":      func(c *Config) { c.Endpoint = "host:9000" },
		"path":           func(c *Config) { c.Endpoint += "/bucket" },
		"half a key":     func(c *Config) { c.SecretKey = "" },
		"absent bucket":  func(c *Config) { c.Bucket = "elsewhere" },
		"bad prefix":     func(c *Config) { c.Prefix = "../up" },
		"nobody listens": func(c *Config) { c.Endpoint = "http://127.0.0.1:1" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			change(&cfg)
			if _, err := Open(t.Context(), cfg); err == nil {
				t.Error("Open accepted it")
			}
		})
	}
}
