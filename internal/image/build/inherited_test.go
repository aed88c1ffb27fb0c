package build

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Descriptors that this process inherited do not reach the tools.
func TestToolsInheritNoDescriptors(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// As one that the process was started with.
	inherited, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 50)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)

	var out, log bytes.Buffer
	err = tool{name: "ls", pkg: "coreutils", args: []string{"/proc/self/fd"}, out: &out, log: &log}.run(t.Context())
	if err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	// ls itself has one open: the folder.
	if got := strings.Fields(out.String()); len(got) != 4 {
		t.Errorf("the tool has the descriptors %q, want 0, 1, 2 and its own", got)
	}
}
