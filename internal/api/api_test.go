package api_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/api"
)

// start starts a server on dir, and closes it at the test's end.
func start(t testing.TB, dir string) (*api.Server, string) {
	t.Helper()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	server, err := api.Start(t.Context(), api.Config{
		Dir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Kubeconfig: kubeconfig,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, server) })
	return server, kubeconfig
}

func stop(t testing.TB, server *api.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := server.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestStart(t *testing.T) {
	began := time.Now()
	dir := t.TempDir()
	s, kc := start(t, dir)
	t.Log("ready in", time.Since(began), s.URL(), kc)
	stop(t, s)
	began = time.Now()
	s, _ = start(t, dir)
	t.Log("again ready in", time.Since(began), s.URL())
	began = time.Now()
	stop(t, s)
	t.Log("stopped in", time.Since(began))
}
