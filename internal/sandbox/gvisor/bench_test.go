package gvisor

import (
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
)

func BenchmarkSnapshot(b *testing.B) {
	sandboxtest.Benchmark(b, func(testing.TB) sandbox.Driver { return New(Config{}) }, sandboxtest.Options{})
}
