package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Place is for one micro-VM: a number, a folder, a cgroup and a network. That
// it exists is recorded before anything is started in it.
type Place struct {
	sandbox.State
	Link sandbox.Link

	host  *Host
	lease *network.Lease
}

// Place makes one. With egress the guest reaches public addresses.
func (h *Host) Place(ctx context.Context, egress bool) (_ *Place, err error) {
	id := sandbox.NewID()
	p := &Place{host: h, State: sandbox.State{
		ID: id, Dir: filepath.Join(h.dir, vmsName, id), Cgroup: cgroupOf(h.node) + "/" + id,
	}}
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		return nil, err
	}
	if p.lease, err = h.nets.Acquire(ctx, network.Options{Kind: h.link, Egress: egress}); err != nil {
		return nil, errors.Join(fmt.Errorf("network: %w", err), os.Remove(p.Dir))
	}
	p.Link = p.lease.Link()
	h.mu.Lock()
	h.vms[id] = p
	h.mu.Unlock()
	return p, nil
}

// Release frees the place, and what a micro-VM left in it. It is idempotent.
func (p *Place) Release(ctx context.Context) error {
	if err := p.host.reaper.Reap(ctx, p.State); err != nil {
		return err
	}
	if err := p.lease.Release(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(p.Dir); err != nil {
		return err
	}
	p.host.mu.Lock()
	delete(p.host.vms, p.ID)
	p.host.mu.Unlock()
	return nil
}
