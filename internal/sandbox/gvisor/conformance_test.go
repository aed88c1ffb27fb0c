package gvisor

import (
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return New(Config{}) }, sandboxtest.Options{})
}
