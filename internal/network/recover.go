package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

const lockName = "lock"

// lockDir makes sure that only one manager at a time uses dir. The kernel
// lets go of the lock when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("network: open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("network: %s is in use by another process: stop it, or choose another Dir", dir)
		}
		return nil, fmt.Errorf("network: lock %s: %w", path, err)
	}
	return f, nil
}

var leaseID = regexp.MustCompile(`^[0-9a-f]{16}$`)

// recoverDir removes the leases that are recorded in dir and the table of
// this node on the host.
func recoverDir(ctx context.Context, dir, node string, log *slog.Logger) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !leaseID.MatchString(e.Name()) {
			continue // the lock, or something that is not ours
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, e.Name())
		uplink, err := recordedUplink(path, node)
		if err == nil {
			err = removeLease(path, uplink)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("lease %s: %w", e.Name(), err))
			continue
		}
		log.Info("removed network lease of an earlier run", "lease", e.Name())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return removeTable(ctx, tableName(node))
}

// recordedUplink returns the name of the lease's uplink on the host, if any.
func recordedUplink(dir, node string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // killed before there was anything
	}
	if err != nil {
		return "", err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		// Records appear whole. It takes a crash of the machine to damage
		// one, after which what it named is gone.
		return "", nil //nolint:nilerr // see above
	}
	if r.Uplink != "" && !strings.HasPrefix(r.Uplink, uplinkPrefix(node)) {
		return "", fmt.Errorf("uplink %q in %s belongs to another node than %s: give each node a directory of its own", r.Uplink, recordName, node)
	}
	return r.Uplink, nil
}
