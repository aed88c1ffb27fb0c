package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/admin"
)

func newSnapshotPush(g *globals) *cobra.Command {
	return newSnapshotCopy(g, "push ID STORE", "Copy a snapshot to another store", "Pushing", `
A folder is made if there is none; the one that it is in must be there.`, (*admin.Client).PushSnapshot)
}

func newSnapshotPull(g *globals) *cobra.Command {
	return newSnapshotCopy(g, "pull ID STORE", "Copy a snapshot from another store", "Pulling", `
A note that it is being read is left in that store meanwhile, so that nobody
removes it; if the store is read-only, it is copied without.`, (*admin.Client).PullSnapshot)
}

func newSnapshotCopy(g *globals, use, about, doing, more string, do func(*admin.Client, context.Context, string, string) (admin.SnapshotCopy, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: about,
		Long: about + `, with those that it is a difference from. STORE is a folder, or
s3://BUCKET/PREFIX?endpoint=URL[&region=REGION], for which 'skep up' takes
credentials from its environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or
the shared credentials file. Only what is missing there is copied, and checked
on its way; what is there already is not read again ('skep snapshot verify'
does that for the node's store).` + more,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeSnapshots(g, 1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			store := args[1]
			if !strings.Contains(store, "://") {
				abs, err := filepath.Abs(store)
				if err != nil {
					return err
				}
				store = abs
			}
			p := newProgress()
			defer p.done()
			p.step(doing + " " + shortID(args[0]))
			r, err := do(c.node, cmd.Context(), args[0], store)
			p.done()
			if err != nil {
				return explainNode(err)
			}
			if r.Made {
				fmt.Fprintf(cmd.ErrOrStderr(), "there was no folder %s: it was made\n", store)
			}
			return g.print(cmd.OutOrStdout(), r, func() *table {
				t := &table{head: []string{"ID", "SNAPSHOTS", "OBJECTS", "COPIED", "THERE ALREADY"}}
				t.add(shortID(r.ID), fmt.Sprint(r.Snapshots), fmt.Sprint(r.Objects), size(r.Bytes), fmt.Sprint(r.Present))
				return t
			})
		}),
	}
	outputFlag(cmd, g)
	return cmd
}
