package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/admin"
)

func newSnapshot(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Make, list, compare, verify, compact, copy and remove snapshots",
		Long: `Make, list, compare, verify, compact, copy and remove snapshots of functions.

'skep up' makes and uses snapshots by itself, as its --snapshot flags and the
annotations of services say; these commands are for looking, for moving
snapshots between machines, and for making room. An ID may be cut short as far
as it is unique.`,
		Example: `  skep snapshot list
  skep snapshot create hello
  skep snapshot push 3f2a s3://snapshots/prod?endpoint=https://s3.example.com`,
	}
	cmd.AddCommand(newSnapshotCreate(g), newSnapshotList(g), newSnapshotDescribe(g), newSnapshotDiff(g),
		newSnapshotVerify(g), newSnapshotCompact(g), newSnapshotPush(g), newSnapshotPull(g), newSnapshotDelete(g), newSnapshotPrune(g))
	return cmd
}

// explainNode gives an error of the node's socket its exit code.
func explainNode(err error) error {
	switch {
	case errors.Is(err, admin.ErrNotFound):
		return coded(exitNotFound, err)
	case errors.Is(err, admin.ErrUsage):
		return coded(exitUsage, err)
	}
	return err
}

// completeSnapshots completes the IDs of snapshots.
func completeSnapshots(g *globals, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := newClient(g)
		if err != nil || most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
		defer cancel()
		all, err := c.node.Snapshots(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, s := range all {
			out = append(out, shortID(s.ID)+"\t"+s.Namespace+"/"+s.Revision)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// shortID is enough of an ID for people.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

func newSnapshotCreate(g *globals) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "create SERVICE",
		Short: "Make a snapshot of a service now",
		Long: `Make a snapshot of an instance of a service, whatever the service's policy is,
in the first moment in which the instance has no request. If there is no
instance, one is started. Later starts are from this snapshot.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOne(g),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			s, err := c.service(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			revision := s.Status.LatestReadyRevisionName
			if revision == "" {
				return coded(exitNotReady, fmt.Errorf("service %q has no revision that is ready (see `skep describe %s`)", s.Name, s.Name))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			p := newProgress()
			defer p.done()
			p.step("Making a snapshot of " + revision)
			made, err := c.node.CreateSnapshot(ctx, s.Namespace, revision)
			p.done()
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("no snapshot of %s within %s: its instances may never be without a request (--timeout)", revision, timeout)
			}
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), made, func() *table { return snapshotTable([]admin.Snapshot{made}) })
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for a moment without requests, and for the snapshot")
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotVerify(g *globals) *cobra.Command {
	var all, remove bool
	cmd := &cobra.Command{
		Use:   "verify ID... | --all",
		Short: "Read snapshots through and report all damage",
		Long: `Read all of one or more snapshots in the store (not in this machine's cache of
it) and compare it with the digests that it was stored under. The exit code is
1 if any is damaged, or of another version of skep; the latter are never
removed by --remove ('skep snapshot delete' does that).`,
		ValidArgsFunction: completeSnapshots(g, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return coded(exitUsage, errors.New("snapshot verify: name IDs or use --all"))
			}
			c, err := newClient(g)
			if err != nil {
				return err
			}
			if all {
				list, err := c.node.Snapshots(cmd.Context())
				if err != nil {
					return explainNode(err)
				}
				for _, s := range list {
					args = append(args, s.ID)
				}
			}
			p := newProgress()
			defer p.done()
			reports := []admin.SnapshotReport{}
			damaged := 0
			for n, id := range args {
				p.step(fmt.Sprintf("Verifying %s (%d of %d)", shortID(id), n+1, len(args)))
				r, err := c.node.VerifySnapshot(cmd.Context(), id, remove)
				if err != nil {
					return explainNode(err)
				}
				reports = append(reports, r)
				if len(r.Problems) > 0 {
					damaged++
				}
			}
			p.done()
			err = g.print(cmd.OutOrStdout(), reports, func() *table {
				t := &table{head: []string{"ID", "CHUNKS", "READ", "STATE"}}
				for _, r := range reports {
					state := "whole"
					if len(r.Problems) > 0 {
						state = strings.Join(r.Problems, "; ")
					}
					if r.Foreign {
						state += " (of another version of skep: left alone)"
					}
					if r.Removed {
						state += " (removed)"
					}
					t.add(shortID(r.ID), fmt.Sprint(r.Chunks), size(r.Bytes), state)
				}
				return t
			})
			if err == nil && damaged > 0 {
				err = fmt.Errorf("%d of %d snapshots cannot be used", damaged, len(reports))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "verify all snapshots")
	cmd.Flags().BoolVar(&remove, "remove", false, "remove those that are damaged")
	outputFlag(cmd, g)
	return cmd
}
