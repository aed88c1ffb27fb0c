package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/admin"
)

func snapshotTable(all []admin.Snapshot) *table {
	t := &table{head: []string{"ID", "REVISION", "DRIVER", "SIZE", "LAYERS", "ON DISK", "WORKING SET", "MADE", "USED", "POLICY"}}
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
		layers := "?"
		if s.Depth > 0 {
			layers = fmt.Sprint(s.Depth)
		}
		t.add(shortID(s.ID), s.Namespace+"/"+s.Revision, s.Driver, size(s.Bytes), layers, onDisk, set, age(s.Created), age(s.LastUse), s.Policy)
	}
	return t
}

func newSnapshotList(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the snapshots in the node's store",
		Args:    cobra.NoArgs,
		RunE: withClient(g, func(cmd *cobra.Command, c *client, _ []string) error {
			all, err := c.node.Snapshots(cmd.Context())
			if err != nil {
				return explainNode(err)
			}
			return g.print(cmd.OutOrStdout(), all, func() *table { return snapshotTable(all) })
		}),
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
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
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
					text := fmt.Sprintf("%s, %s", short(l.Digest.String()), size(l.Size))
					switch n := d.Depths[l.Role]; {
					case n == 0:
						text += ", cannot be read (skep snapshot verify " + shortID(d.ID) + ")"
					case n > 1:
						text += fmt.Sprintf(", a difference: %d layers", n)
					}
					t.add("layer "+l.Role, text)
				}
				for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
					t.add("label "+k, m.Labels[k])
				}
				if d.Local > 0 {
					t.add("on disk", size(d.Local))
				}
				return t
			})
		}),
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
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
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
		}),
	}
	outputFlag(cmd, g)
	return cmd
}
