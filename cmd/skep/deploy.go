package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/daemon"
)

// deployFlags are what `skep deploy` may be told of a service.
type deployFlags struct {
	image, source, runtime, file string
	env                          []string
	annotations                  []string
	port                         int32
	protocol                     string
	memory, cpu                  string
	concurrency                  int64
	timeout                      time.Duration
	minScale, maxScale           int
	sandbox                      string
	egress, pull                 bool
	wait                         bool
	waitTimeout                  time.Duration
}

func newDeploy(g *globals) *cobra.Command {
	var d deployFlags
	cmd := &cobra.Command{
		Use:   "deploy [NAME]",
		Short: "Deploy a function, or a new revision of one",
		Long: `Deploy a function from a container image, from a folder of source code, or
from the manifest of a Knative Service. What exists under the name gets a new
revision, which takes the requests once it has proved to work.`,
		Example: `  skep deploy hello --image ghcr.io/knative/helloworld-go:latest
  skep deploy hello --source ./hello --env TARGET=World
  skep deploy -f service.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			services, err := d.services(cmd, g, args)
			if err != nil {
				return err
			}
			c, err := newClient(g)
			if err != nil {
				return err
			}
			for _, s := range services {
				if err := d.deploy(cmd.Context(), c, s, cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.image, "image", "", "container image")
	f.StringVar(&d.source, "source", "", "folder of source code to build an image from")
	f.StringVar(&d.runtime, "runtime", "", "language of --source: go, python3, node or java (default: found out)")
	f.StringVarP(&d.file, "filename", "f", "", "manifest of Knative Services, - for standard input")
	f.StringArrayVarP(&d.env, "env", "e", nil, "environment variable KEY=VALUE, may be repeated")
	f.Int32VarP(&d.port, "port", "p", 0, "port the function listens on, also in $PORT (default 8080)")
	f.StringVar(&d.protocol, "protocol", "", "what the function speaks: http1 or h2c (gRPC)")
	f.StringVar(&d.memory, "memory", "", "memory limit, such as 256Mi")
	f.StringVar(&d.cpu, "cpu", "", "CPU limit, such as 500m or 2")
	f.Int64Var(&d.concurrency, "concurrency", 0, "requests an instance serves at a time, 0 for any number")
	f.DurationVar(&d.timeout, "timeout", 0, "longest time a request may take, in whole seconds")
	f.IntVar(&d.minScale, "min-scale", 0, "instances kept even without requests")
	f.IntVar(&d.maxScale, "max-scale", 0, "most instances, 0 for no limit")
	f.StringVar(&d.sandbox, "sandbox", "", "sandbox driver: firecracker, gvisor, qemu or runc (default: that of `skep up`)")
	f.StringArrayVar(&d.annotations, "annotation", nil, "annotation KEY=VALUE of the revision, such as skep.dev/snapshot-policy=off, may be repeated")
	f.BoolVar(&d.egress, "egress", false, "let the function reach the internet")
	f.BoolVar(&d.pull, "pull", false, "ask the registry for --image even if the node has an image of that name")
	f.BoolVar(&d.wait, "wait", true, "wait until the service is ready")
	f.DurationVar(&d.waitTimeout, "wait-timeout", 5*time.Minute, "how long to wait")
	cmd.MarkFlagsMutuallyExclusive("image", "source", "filename")
	cmd.MarkFlagsOneRequired("image", "source", "filename")
	_ = cmd.MarkFlagDirname("source")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return cmd
}

// deploy builds if need be, applies, and waits.
func (d *deployFlags) deploy(ctx context.Context, c *client, s *v1.Service, out io.Writer) error {
	p := newProgress()
	defer p.done()
	if d.source != "" {
		ref := c.endpoints.Registry + "/" + s.Namespace + "/" + s.Name
		pinned, err := buildAndPush(ctx, buildRequest{dir: d.source, runtime: d.runtime, ref: ref, cache: baseCache(c.g)}, p)
		if err != nil {
			return err
		}
		s.Spec.Template.Spec.Containers[0].Image = pinned
	}
	p.step("Applying service " + s.Name)
	applied, err := apply(ctx, c, s)
	if err != nil {
		return c.explain(err)
	}
	if !d.wait {
		p.done()
		fmt.Fprintf(out, "service %q applied\n", s.Name)
		return nil
	}
	ready, err := waitReady(ctx, c, applied, d.waitTimeout, p)
	p.done()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "service %q is ready (revision %s)\n%s\n", ready.Name, ready.Status.LatestReadyRevisionName, ready.Status.URL)
	return nil
}

// apply creates the service or changes the one that is there.
func apply(ctx context.Context, c *client, s *v1.Service) (applied *v1.Service, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	services := c.knative.ServingV1().Services(s.Namespace)
	applied, err = services.Create(ctx, s, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return applied, err
	}
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		there, err := services.Get(ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		changed := there.DeepCopy()
		changed.Spec = *s.Spec.DeepCopy()
		for k, v := range s.Labels {
			metav1.SetMetaDataLabel(&changed.ObjectMeta, k, v)
		}
		for k, v := range s.Annotations {
			metav1.SetMetaDataAnnotation(&changed.ObjectMeta, k, v)
		}
		if equality.Semantic.DeepEqual(there, changed) {
			applied = there
			return nil
		}
		applied, err = services.Update(ctx, changed, metav1.UpdateOptions{})
		return err
	})
	return applied, err
}

func baseCache(g *globals) string {
	dir := g.dataDir()
	if dir == "" {
		dir = daemon.DefaultConfig().Data
	}
	return filepath.Join(dir, "cache", "bases")
}
