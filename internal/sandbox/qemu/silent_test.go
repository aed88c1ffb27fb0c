package qemu_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// TestSilent has nobody reach the agent of a machine that has come up: another
// one is booted.
func TestSilent(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	l := newLab(ctx, t)
	spec := l.spec(ctx)
	reopen := l.closePort(spec, agent.Port)
	made := make(chan sandbox.Sandbox, 1)
	go func() {
		sb, err := l.d.Create(ctx, spec)
		if err != nil {
			t.Error(err)
		}
		made <- sb
	}()
	first := l.machineOf(ctx, spec.ID)
	for syscall.Kill(first, 0) == nil && len(made) == 0 {
		time.Sleep(10 * time.Millisecond) // nobody here is told when it ends
	}
	if len(made) > 0 {
		t.Error("one was made that does not answer")
	}
	reopen()
	sb := <-made
	if sb == nil {
		return
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := sb.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
	l.start(ctx, sb)
	if err := sb.(sandbox.PortWaiter).WaitPort(ctx, 8080); err != nil {
		t.Fatal(err)
	}
	l.get(ctx, sb, "/count", "1")
}

// closePort drops what is sent to a guest's port, until it is opened again.
func (l *lab) closePort(spec *sandbox.Spec, port int) (reopen func()) {
	l.t.Helper()
	table := &nftables.Table{Name: "silent", Family: nftables.TableFamilyINet}
	l.nft(spec, func(c *nftables.Conn) {
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "out", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(port))},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	})
	return func() { l.nft(spec, func(c *nftables.Conn) { c.DelTable(table) }) }
}

// nft changes the rules of the namespace from which a guest is reached.
func (l *lab) nft(spec *sandbox.Spec, change func(*nftables.Conn)) {
	l.t.Helper()
	err := netns.Do(spec.Link.DialNS, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		change(c)
		return c.Flush()
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// machineOf is the process that runs a sandbox's machine, once there is one.
func (l *lab) machineOf(ctx context.Context, id string) int {
	l.t.Helper()
	for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) { // nobody tells when it is there
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			l.t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil || !slices.ContainsFunc(bytes.Split(b, []byte{0}), func(arg []byte) bool { return string(arg) == "guest=skep-"+id }) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				l.t.Fatal(err)
			}
			return pid
		}
	}
	l.t.Fatalf("no process runs the machine of %s", id)
	return 0
}
