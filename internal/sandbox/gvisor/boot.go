package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/google/subcommands"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/flag"
)

// Annotations with which the driver tells the sandbox process what
// runsc would otherwise take from cgroups that it makes itself.
const (
	annotationMemory = "dev.skep.memory" // bytes, as the function shall see them
	annotationCPUs   = "dev.skep.cpus"   // as the function shall see them
	annotationPIDs   = "dev.skep.pids"   // processes and threads that the function may have
	// annotationIdentity is there for a sandbox that is going to be restored;
	// it is an identity in JSON.
	annotationIdentity = "dev.skep.identity"
	// annotationHold is there if the restored function must wait for release.
	annotationHold = "dev.skep.hold"
)

// boot is runsc's command that becomes the sandbox.
type boot struct {
	sentrycmd.Boot
}

// Execute implements subcommands.Command.
func (b *boot) Execute(ctx context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	deferGC()
	if err := prepareBoot(f); err != nil {
		return util.Errorf("boot: %v", err)
	}
	return b.Boot.Execute(ctx, f, args...)
}

// prepareBoot does what the driver wants beyond runsc's own boot.
func prepareBoot(f *flag.FlagSet) error {
	useSeccompProgram()
	a, err := readAnnotations(f)
	if err != nil {
		return err
	}
	id, err := parseIdentity(a[annotationIdentity])
	if err != nil {
		return err
	}
	handleMounts()
	if a[annotationHold] != "" {
		holdFirstRun()
		time.AfterFunc(startTime, idleGC)
	}
	return errors.Join(setFlags(f, a), limitTasks(a[annotationPIDs]), atFirstRun(func(k *kernel.Kernel) error {
		// Not just when the function has its first request.
		time.AfterFunc(startTime, normalGC)
		runs(k)
		return id.write(k)
	}))
}

// readAnnotations reads the annotations of the spec.
func readAnnotations(f *flag.FlagSet) (map[string]string, error) {
	fd, err := strconv.Atoi(f.Lookup("spec-fd").Value.String())
	if err != nil {
		return nil, fmt.Errorf("flag spec-fd: %w", err)
	}
	b, err := readAt(fd)
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	var spec struct{ Annotations map[string]string }
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	return spec.Annotations, nil
}

// setFlags sets boot's flags as the annotations say.
func setFlags(f *flag.FlagSet, annotations map[string]string) error {
	for annotation, name := range map[string]string{
		annotationMemory: "total-memory",
		annotationCPUs:   "cpu-num",
	} {
		if v := annotations[annotation]; v != "" {
			if err := f.Set(name, v); err != nil {
				return fmt.Errorf("annotation %s: %w", annotation, err)
			}
		}
	}
	return nil
}

// readAt reads a whole file from its beginning through a descriptor that
// stays as it is: open, and at its offset.
func readAt(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(descriptor(fd), 0, st.Size))
}

type descriptor int

// ReadAt implements io.ReaderAt.
func (d descriptor) ReadAt(p []byte, off int64) (int, error) {
	n, err := unix.Pread(int(d), p, off)
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	return max(n, 0), err
}
