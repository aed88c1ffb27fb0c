package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/image/build"
)

func newImage(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build, import, list and remove images",
		Long: `Build, import, list and remove images. The node serves a registry on loopback
that docker, podman, skopeo and crane can push to as well (see 'skep up').`,
	}
	cmd.AddCommand(newImageBuild(g), newImageImport(g), newImageList(g), newImageRemove(g))
	return cmd
}

func newImageBuild(g *globals) *cobra.Command {
	var runtime, ref string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "build DIR --name NAME",
		Short: "Build an image from a folder of source code",
		Long: `Build an image from a folder of source code and store it on the node.

Go is built as a static binary on an empty base. python3, node and java get a
base of Debian packages, made once and kept; what requirements.txt,
package.json, pom.xml and apt.txt ask for is added.`,
		Args: cobra.ExactArgs(1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			p := newProgress()
			defer p.done()
			r := buildRequest{dir: args[0], runtime: runtime, ref: c.endpoints.Registry + "/" + ref, cache: baseCache(g), verbose: verbose}
			pinned, err := buildAndPush(cmd.Context(), r, p)
			p.done()
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), pinned)
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&runtime, "runtime", "", "language: go, python3, node or java (default: found out)")
	cmd.Flags().StringVarP(&ref, "name", "t", "", "name of the image, NAME or NAME:TAG")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the output of the tools that run")
	_ = cmd.MarkFlagRequired("name")
	_ = cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(build.Runtimes(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

type buildRequest struct {
	dir, runtime, ref, cache string
	verbose                  bool
}

// buildAndPush builds an image, pushes it to the node's registry and returns
// its reference by digest.
func buildAndPush(ctx context.Context, r buildRequest, p *progress) (string, error) {
	o := build.Options{Dir: r.dir, CacheDir: r.cache, Progress: p.step}
	if r.verbose {
		o.Log = os.Stderr
	}
	if r.runtime != "" {
		rt, err := build.ParseRuntime(r.runtime)
		if err != nil {
			return "", coded(exitUsage, fmt.Errorf("--runtime: %w", err))
		}
		o.Runtime = rt
	}
	if st, err := os.Stat(r.dir); err != nil {
		return "", coded(exitUsage, fmt.Errorf("source folder: %w", err))
	} else if !st.IsDir() {
		return "", coded(exitUsage, fmt.Errorf("source folder: %s is not a folder", r.dir))
	}
	if err := os.MkdirAll(r.cache, 0o700); err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	img, err := build.Build(ctx, o)
	if err != nil {
		return "", err
	}
	defer img.Close()
	return push(ctx, img, r.ref, p)
}

// push stores an image on the node through its registry. A reference without
// a tag gets one of the image's own, so that an earlier image under the name,
// which a revision may still run, keeps its.
func push(ctx context.Context, img v1.Image, ref string, p *progress) (string, error) {
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	tag, err := name.NewTag(ref, name.Insecure, name.WithDefaultTag(digest.Hex[:12]))
	if err != nil {
		return "", coded(exitUsage, fmt.Errorf("image name: %w", err))
	}
	p.step("Storing " + tag.Name())
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s to the node's registry: %w", tag.Name(), err)
	}
	return tag.Context().Name() + "@" + digest.String(), nil
}

func newImageImport(g *globals) *cobra.Command {
	var ref string
	cmd := &cobra.Command{
		Use:   "import PATH",
		Short: "Import an image from an OCI layout or a `docker save` archive",
		Args:  cobra.ExactArgs(1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if _, err := os.Stat(path); err != nil {
				return coded(exitUsage, err)
			}
			p := newProgress()
			defer p.done()
			p.step("Importing " + args[0])
			img, err := c.node.ImportImage(cmd.Context(), path, ref)
			p.done()
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s\n", img.Ref, img.Digest)
			}
			return err
		}),
	}
	cmd.Flags().StringVarP(&ref, "name", "t", "", "name of the image (default: the one in the archive)")
	return cmd
}

func newImageList(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the images on the node",
		Args:    cobra.NoArgs,
		RunE: withClient(g, func(cmd *cobra.Command, c *client, _ []string) error {
			images, err := c.node.Images(cmd.Context())
			if err != nil {
				return coded(exitNoDaemon, err)
			}
			return g.print(cmd.OutOrStdout(), images, func() *table {
				t := &table{head: []string{"IMAGE", "DIGEST", "SIZE", "ADDED", "IN USE"}}
				for _, i := range images {
					used := ""
					if i.InUse {
						used = "yes"
					}
					t.add(i.Ref, short(i.Digest), size(i.Bytes), age(i.Created), used)
				}
				return t
			})
		}),
	}
	outputFlag(cmd, g)
	return cmd
}

func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19]
	}
	return digest
}

func newImageRemove(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "remove IMAGE...",
		Aliases: []string{"rm"},
		Short:   "Remove images from the node",
		Args:    cobra.MinimumNArgs(1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			var errs []error
			for _, ref := range args {
				err := c.node.RemoveImage(cmd.Context(), ref)
				if errors.Is(err, admin.ErrNotFound) {
					err = coded(exitNotFound, err)
				}
				if errs = append(errs, err); err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "image %q removed\n", ref)
				}
			}
			return errors.Join(errs...)
		}),
	}
}
