package gvisor

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	MaybeRunsc()
	os.Exit(m.Run())
}
