package microvm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// ErrSilent says that a machine has come up, and then did not answer for four
// times as long as that took, or that it has used bootCPU and has not come up.
var ErrSilent = errors.New("the guest does not answer")

// ErrTimer says that a machine has ended by itself, as its kernel measured the
// processor's timer wrong. Another boot measures anew.
var ErrTimer = errors.New("the guest's kernel has measured its timer wrong")

// bootCPU is the processor time that a machine may use until its agent listens,
// some ten times what an emulated one does. The kernel of one with two emulated
// processors runs in a circle while it starts the second, for ever, when it has
// given its timer up: see agent.ErrTimer.
const bootCPU = 45 * time.Second

// silence is the least time for an answer before ErrSilent.
const silence = 20 * time.Second

// Boot waits for a place among the machines that boot at the same time, has
// start start one, which sets Machine, and waits for its agent, which it gives
// what it must know.
func (b *Box) Boot(ctx context.Context, places chan struct{}, start func(context.Context) error) error {
	begin := time.Now()
	if err := Lock(ctx, places); err != nil {
		return fmt.Errorf("wait for other machines to boot: %w", err)
	}
	defer Unlock(places)
	queued := time.Now()
	if err := start(ctx); err != nil {
		return err
	}
	started := time.Now()
	if err := awaitReady(ctx, b.Machine, b.Group, bootCPU); err != nil {
		return err
	}
	listening := time.Now()
	kernel := listening.Sub(started)
	ctx, cancel := until(ctx, b.Machine.Dead())
	defer cancel()
	answering, stop := context.WithTimeout(ctx, max(silence, 4*kernel))
	defer stop()
	agentTook, err := b.introduce(answering)
	if err != nil && answering.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", ErrSilent, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, b.Machine.Explain())
	}
	agentTook = min(max(agentTook, 0), kernel)
	b.addPhases(
		sandbox.Phase{Name: "queue", Took: queued.Sub(begin)},
		sandbox.Phase{Name: "vmm", Took: started.Sub(queued)},
		sandbox.Phase{Name: "kernel", Took: kernel - agentTook},
		sandbox.Phase{Name: "agent", Took: agentTook + time.Since(listening)},
	)
	return nil
}

// awaitReady waits until the guest's agent listens, or its machine, in g, has
// used that much processor time.
func awaitReady(ctx context.Context, m Machine, g *cgroup.Group, limit time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		t := time.NewTicker(min(limit, time.Second)) // nothing tells
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			if s, err := g.Stats(); err == nil && s.CPUTime > limit {
				cancel(fmt.Errorf("%w: it has used %v of processor time, and has not come up", ErrSilent, s.CPUTime.Round(time.Second)))
				return
			}
		}
	}()
	err := m.AwaitReady(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrSilent) {
		return fmt.Errorf("%w: %w", cause, m.Explain())
	}
	return err
}

// introduce connects to the agent of a machine that has booted. It returns how
// long the agent says that it took until it listened.
func (b *Box) introduce(ctx context.Context) (time.Duration, error) {
	b.token = agent.NewToken()
	b.openLink()
	c, err := b.link.get(ctx)
	if err != nil {
		return 0, err
	}
	pong, err := c.Ping(ctx)
	if err != nil {
		return 0, err
	}
	var id [agent.MachineIDSize]byte
	_, _ = rand.Read(id[:]) // never fails
	conf := &agentpb.ConfigureRequest{
		Hostname:    b.Spec.Hostname,
		MachineId:   hex.EncodeToString(id[:]),
		Address:     b.Spec.Link.Address.IP.String(),
		DiskBytes:   uint64(b.Resources.DiskBytes),
		MemoryBytes: uint64(b.Resources.MemoryBytes),
		Pids:        uint64(b.Resources.PIDs),
	}
	for _, ip := range b.Spec.Link.DNS {
		conf.Dns = append(conf.Dns, ip.String())
	}
	return time.Duration(pong.ReadyMicros) * time.Microsecond, c.Configure(ctx, conf)
}

// Modules is what the agent needs of the guest's kernel, where the devices are
// on the memory bus.
func Modules() []string {
	return []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "erofs", "overlay"}
}

// ProbeParam has the agent show that the machine boots, and nothing else.
const ProbeParam = "skep.probe"

// KernelParams are the guest kernel's, but for those that tell of the machine.
// What each saves was measured: see the comments. Security features are
// switched off only where they protect the function from itself; the host's
// protection is the virtual machine.
func KernelParams() []string {
	return []string{
		"console=ttyS0", "quiet",
		"panic=-1",          // a panic ends the machine at once
		"cryptomgr.notests", // 250 ms under emulation
		"mitigations=off", "init_on_alloc=0", "audit=0", "lsm=",
		"rodata=off", // splitting huge pages of the kernel's
		"nowatchdog", "8250.nr_uarts=1", "pci=off",
		"ipv6.disable_ipv6=1", // sockets exist, addresses do not
		"random.trust_cpu=on",
	}
}

// GuestParams are what the agent reads from the kernel's command line.
func (b *Box) GuestParams() []string {
	l := b.Spec.Link
	p := []string{
		"skep.address=" + l.Address.String(), "skep.gateway=" + l.Gateway.String(),
		fmt.Sprintf("skep.disks=%d", len(b.Spec.Disks)),
	}
	if l.MTU > 0 {
		p = append(p, fmt.Sprintf("skep.mtu=%d", l.MTU))
	}
	return p
}
