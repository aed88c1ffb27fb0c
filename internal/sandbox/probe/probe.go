// Package probe proves that a driver works on this machine: it runs a program
// of a few instructions to its end in a sandbox of the driver.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

const (
	timeout     = 30 * time.Second
	cleanupTime = 30 * time.Second
)

// Run runs a sandbox of a driver whose links are of kind [sandbox.LinkVeth]
// from Create to Destroy, and expects its program to end with [ExitCode].
// Nothing is left behind, whatever happens. It needs root.
func Run(ctx context.Context, d sandbox.Driver, scratch sandbox.State) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("probe %s: %w", d.Name(), err)
		}
	}()
	if os.Geteuid() != 0 {
		return errors.New("not root: namespaces and cgroups cannot be made (try sudo)")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	image, ns := filepath.Join(scratch.Dir, "probe.erofs"), filepath.Join(scratch.Dir, "probe-netns")
	if err := WriteImage(image); err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	if err := netns.Create(ns); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Remove(ns)) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return live(ctx, d, &sandbox.Spec{
		ID: scratch.ID, Dir: scratch.Dir, Rootfs: image, Hostname: "probe",
		Process: sandbox.Process{Args: []string{program}},
		Link: sandbox.Link{
			NetNS: ns, DialNS: ns, Interface: "eth0", // which there is not
			Address: net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)},
		},
		Cgroup: scratch.Cgroup,
		Stdout: null, Stderr: null,
	})
}

// live is the sandbox's whole life.
func live(ctx context.Context, d sandbox.Driver, spec *sandbox.Spec) (err error) {
	s, err := d.Create(ctx, spec)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		err = errors.Join(err, s.Destroy(ctx))
	}()
	if err := s.Start(ctx); err != nil {
		return err
	}
	exit, err := s.Wait(ctx)
	if err != nil {
		return err
	}
	if exit.Code != ExitCode {
		return fmt.Errorf("the sandbox's program ended with code %d instead of %d: %s", exit.Code, ExitCode, exit.Reason)
	}
	return nil
}
