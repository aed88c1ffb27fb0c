package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/admin"
)

func newSnapshotCompact(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compact ID",
		Short: "Make a whole snapshot of one that is a difference from others",
		Long: `Store a snapshot that is a difference from others (LAYERS in 'skep snapshot
list') as a whole one, which takes its place. The old one is removed, and those
that only it was a difference from, unless somebody reads them; what they alone
were made of is freed with the next 'skep snapshot prune', or by itself within
ten minutes.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeSnapshots(g, 1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			p := newProgress()
			defer p.done()
			p.step("Compacting " + shortID(args[0]))
			r, err := c.node.CompactSnapshot(cmd.Context(), args[0])
			p.done()
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), r, func() *table { return compactTable(r) })
		}),
	}
	outputFlag(cmd, g)
	return cmd
}

func compactTable(r admin.SnapshotCompact) *table {
	t := &table{head: []string{"ID", "OF", "LAYERS", "SNAPSHOTS REMOVED"}}
	layers := fmt.Sprintf("%d to 1", r.Depth)
	if r.ID == r.From {
		layers = "1 already"
	}
	t.add(shortID(r.ID), shortID(r.From), layers, fmt.Sprint(len(r.Removed)))
	return t
}
