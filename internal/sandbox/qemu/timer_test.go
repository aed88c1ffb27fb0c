package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestTimer boots machines whose kernel has given up its timer, as it does when
// it has measured it wrong: they say so, instead of standing still later, and
// are booted again.
func TestTimer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	l := newLab(ctx, t)
	agent, err := os.ReadFile(testenv.Program(t, "github.com/skep-dev/skep/cmd/skep-agent"))
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	l.d, err = qemu.New(qemu.Config{
		CacheDir: t.TempDir(), Agent: agent, KernelArgs: []string{"nolapic_timer"},
		Log: slog.New(slog.NewTextHandler(&logged, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := l.d.Create(ctx, l.spec(ctx))
	if err == nil {
		t.Fatal(errors.Join(errors.New("a machine without a timer has booted"), sb.Destroy(ctx)))
	}
	if !errors.Is(err, microvm.ErrTimer) || !strings.Contains(err.Error(), "processor 0 has none") {
		t.Errorf("error is %v, want %v", err, microvm.ErrTimer)
	}
	if n := strings.Count(logged.String(), "booted again"); n != 3 {
		t.Errorf("booted again %d times:\n%s", n, &logged)
	}
}
