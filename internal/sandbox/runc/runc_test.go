package runc_test

import (
	"context"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/runc"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestConformance(t *testing.T) {
	testenv.Tool(t, "runc", "runc")
	sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return runc.New(runc.Config{}) }, sandboxtest.Options{})
}

func TestProbeMissing(t *testing.T) {
	err := runc.New(runc.Config{Command: "/no/such/runc"}).Probe(context.Background(), sandbox.State{})
	if err == nil || !strings.Contains(err.Error(), "apt-get install runc") || !strings.Contains(err.Error(), "/no/such/runc") {
		t.Errorf("Probe() = %v, want an error that names the program and the package", err)
	}
}
