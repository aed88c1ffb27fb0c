package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skep-dev/skep/internal/admin"
)

func newSnapshot(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Make, list, compare, verify, copy and remove snapshots",
		Long: `Make, list, compare, verify, copy and remove snapshots of functions.

'skep up' makes and uses snapshots by itself, as its --snapshot flags and the
annotations of services say; these commands are for looking, for moving
snapshots between machines, and for making room. An ID may be cut short as far
as it is unique.`,
		Example: `  skep snapshot list
  skep snapshot create hello
  skep snapshot push 3f2a s3://snapshots/prod?endpoint=https://s3.example.com`,
	}
	cmd.AddCommand(newSnapshotCreate(g), newSnapshotList(g), newSnapshotDescribe(g), newSnapshotDiff(g),
		newSnapshotVerify(g), newSnapshotPush(g), newSnapshotPull(g), newSnapshotDelete(g), newSnapshotPrune(g))
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
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(g)
			if err != nil {
				return err
			}
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
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for a moment without requests, and for the snapshot")
	outputFlag(cmd, g)
	return cmd
}

func snapshotTable(all []admin.Snapshot) *table {
	t := &table{head: []string{"ID", "REVISION", "DRIVER", "SIZE", "ON DISK", "WORKING SET", "MADE", "USED", "POLICY"}}
	for _, s := range all {
		if s.Error != "" {
			t.add(shortID(s.ID), "<unusable: "+s.Error+">")
			continue
		}
		set := ""
		if s.WorkingSet {
			set = "yes"
		}
		onDisk := ""
		if s.Local > 0 {
			onDisk = size(s.Local)
		}
		t.add(shortID(s.ID), s.Namespace+"/"+s.Revision, s.Driver, size(s.Bytes), onDisk, set, age(s.Created), age(s.LastUse), s.Policy)
	}
	return t
}

func newSnapshotList(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the snapshots in the node's store",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(g)
			if err != nil {
				return err
			}
			all, err := c.node.Snapshots(cmd.Context())
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), all, func() *table { return snapshotTable(all) })
		},
	}
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotDescribe(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "describe ID",
		Aliases:           []string{"inspect"},
		Short:             "Tell all about a snapshot: what it needs, what it is made of",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeSnapshots(g, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(g)
			if err != nil {
				return err
			}
			d, err := c.node.DescribeSnapshot(cmd.Context(), args[0])
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), d, func() *table {
				m := d.Manifest
				t := &table{head: []string{"FIELD", "VALUE"}}
				t.add("id", d.ID)
				t.add("made", m.Created.Format(time.RFC3339))
				if !m.Parent.IsZero() {
					t.add("parent", m.Parent.String())
				}
				t.add("driver", m.Driver.Name+" "+m.Driver.Version)
				for _, kv := range [][2]string{{"kernel", m.Kernel}, {"agent", m.Agent}, {"root image", m.RootImage}} {
					if kv[1] != "" {
						t.add(kv[0], kv[1])
					}
				}
				t.add("cpu", fmt.Sprintf("%s, %s, %d features", m.CPU.Arch, m.CPU.Model, len(m.CPU.Features)))
				t.add("memory, vcpus", fmt.Sprintf("%s, %d", size(m.MemoryBytes), m.VCPUs))
				for _, l := range m.Layers {
					t.add("layer "+l.Role, fmt.Sprintf("%s, %s", short(l.Digest.String()), size(l.Size)))
				}
				for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
					t.add("label "+k, m.Labels[k])
				}
				if d.Local > 0 {
					t.add("on disk", size(d.Local))
				}
				return t
			})
		},
	}
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotDiff(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "diff ID ID",
		Short:             "Compare the content of two snapshots, page by page",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeSnapshots(g, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(g)
			if err != nil {
				return err
			}
			p := newProgress()
			defer p.done()
			p.step("Comparing")
			roles, err := c.node.DiffSnapshots(cmd.Context(), args[0], args[1])
			p.done()
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), roles, func() *table {
				t := &table{head: []string{"ROLE", "SIZE A", "SIZE B", "SAME PAGES", "CHANGED", "ONLY A", "ONLY B", "SHARED CHUNKS"}}
				for _, r := range roles {
					t.add(r.Role, size(r.SizeA), size(r.SizeB), fmt.Sprint(r.Same), fmt.Sprint(r.Changed), fmt.Sprint(r.OnlyA), fmt.Sprint(r.OnlyB), size(r.SharedBytes))
				}
				return t
			})
		},
	}
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotVerify(g *globals) *cobra.Command {
	var all, remove bool
	cmd := &cobra.Command{
		Use:               "verify ID... | --all",
		Short:             "Read snapshots through and report all damage",
		Long:              `Read all of one or more snapshots and compare it with the digests that it was stored under. The exit code is 1 if any is damaged.`,
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
					if r.Removed {
						state += " (removed)"
					}
					t.add(shortID(r.ID), fmt.Sprint(r.Chunks), size(r.Bytes), state)
				}
				return t
			})
			if err == nil && damaged > 0 {
				err = fmt.Errorf("%d of %d snapshots are damaged", damaged, len(reports))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "verify all snapshots")
	cmd.Flags().BoolVar(&remove, "remove", false, "remove those that are damaged")
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotPush(g *globals) *cobra.Command {
	return newSnapshotCopy(g, "push ID STORE", "Copy a snapshot to another store", "Pushing", (*admin.Client).PushSnapshot)
}

func newSnapshotPull(g *globals) *cobra.Command {
	return newSnapshotCopy(g, "pull ID STORE", "Copy a snapshot from another store", "Pulling", (*admin.Client).PullSnapshot)
}

func newSnapshotCopy(g *globals, use, about, doing string, do func(*admin.Client, context.Context, string, string) (admin.SnapshotCopy, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: about,
		Long: about + `. STORE is a folder, or s3://BUCKET/PREFIX?endpoint=URL[&region=REGION],
for which 'skep up' takes credentials from its environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the shared credentials file.
Only what is missing there is copied, and all of it is verified.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeSnapshots(g, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(g)
			if err != nil {
				return err
			}
			store := args[1]
			if !strings.Contains(store, "://") {
				if store, err = filepath.Abs(store); err != nil {
					return err
				}
			}
			p := newProgress()
			defer p.done()
			p.step(doing + " " + shortID(args[0]))
			r, err := do(c.node, cmd.Context(), args[0], store)
			p.done()
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), r, func() *table {
				t := &table{head: []string{"ID", "SNAPSHOTS", "OBJECTS", "COPIED", "THERE ALREADY"}}
				t.add(shortID(r.ID), fmt.Sprint(r.Snapshots), fmt.Sprint(r.Objects), size(r.Bytes), fmt.Sprint(r.Present))
				return t
			})
		},
	}
	outputFlag(cmd, g)
	return cmd
}

func newSnapshotDelete(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "delete ID...",
		Aliases:           []string{"rm"},
		Short:             "Remove snapshots",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeSnapshots(g, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(g)
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range args {
				err := explainNode(c.node.DeleteSnapshot(cmd.Context(), id))
				if errs = append(errs, err); err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "snapshot %s deleted\n", id)
				}
			}
			return errors.Join(errs...)
		},
	}
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
