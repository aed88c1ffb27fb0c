package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
)

func newSnapshotDelete(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "delete ID...",
		Aliases:           []string{"rm"},
		Short:             "Remove snapshots",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeSnapshots(g, 0),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			var errs []error
			type deleted struct {
				ID string `json:"id"`
			}
			gone := []deleted{}
			for _, id := range args {
				err := explainNode(c.node.DeleteSnapshot(cmd.Context(), id))
				if errs = append(errs, err); err == nil {
					gone = append(gone, deleted{id})
				}
			}
			errs = append(errs, g.print(cmd.OutOrStdout(), gone, func() *table {
				t := &table{head: []string{"DELETED"}}
				for _, d := range gone {
					t.add(d.ID)
				}
				return t
			}))
			return errors.Join(errs...)
		}),
	}
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotPrune(g *globals) *cobra.Command {
	var limit string
	var all bool
	cmd := &cobra.Command{
		Use:   "prune [--limit SIZE | --all]",
		Short: "Free what no snapshot uses, and snapshots above a limit",
		Long: `Free what no snapshot uses, and remove the least recently used snapshots above
a limit: that of 'skep up --snapshot-limit', unless another one is given. It
does now what the daemon does every ten minutes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bytes := int64(-1)
			if all {
				bytes = 0
			} else if limit != "" {
				q, err := resource.ParseQuantity(limit)
				if err != nil || q.Sign() < 0 {
					return coded(exitUsage, fmt.Errorf("--limit: %q is not a size such as 4Gi", limit))
				}
				bytes = q.Value()
			}
			c, err := newClient(g)
			if err != nil {
				return err
			}
			p := newProgress()
			defer p.done()
			p.step("Removing what is not used")
			r, err := c.node.PruneSnapshots(cmd.Context(), bytes)
			p.done()
			if err != nil {
				return explainNode(err)
			}
			if n := len(r.Foreign); n > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d snapshots are of another version of skep (%s ...): as long as they are in the store, nothing is freed there\n", n, shortID(r.Foreign[0]))
			}
			return g.print(cmd.OutOrStdout(), r, func() *table {
				t := &table{head: []string{"SNAPSHOTS REMOVED", "OBJECTS FREED", "FREED", "KEPT"}}
				t.add(fmt.Sprint(len(r.Evicted)), fmt.Sprint(r.Objects), size(r.Bytes), size(r.Kept))
				return t
			})
		},
	}
	cmd.Flags().StringVar(&limit, "limit", "", "keep at most this much, such as 4Gi")
	cmd.Flags().BoolVar(&all, "all", false, "remove all snapshots that nothing uses now")
	cmd.MarkFlagsMutuallyExclusive("limit", "all")
	outputFlag(cmd, g)
	return cmd
}
