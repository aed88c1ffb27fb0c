package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/autoscaling"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/api/manifest"
	"github.com/skep-dev/skep/internal/daemon"
	"github.com/skep-dev/skep/internal/serving"
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

// services reads the flags or the manifest.
func (d *deployFlags) services(cmd *cobra.Command, g *globals, args []string) ([]*v1.Service, error) {
	if d.file == "" {
		if len(args) == 0 {
			return nil, coded(exitUsage, errors.New("deploy: a NAME is needed with --image and --source"))
		}
		s, err := d.service(cmd, args[0], g.namespace)
		return []*v1.Service{s}, coded(exitUsage, err)
	}
	b, err := readFile(d.file, cmd.InOrStdin())
	if err != nil {
		return nil, coded(exitUsage, fmt.Errorf("--filename: %w", err))
	}
	services, err := manifest.Decode(b)
	if err != nil {
		return nil, coded(exitUsage, fmt.Errorf("%s: %w", d.file, err))
	}
	seen := map[string]bool{}
	for _, s := range services {
		if s.Namespace == "" {
			s.Namespace = g.namespace
		}
		if key := s.Namespace + "/" + s.Name; seen[key] {
			return nil, coded(exitUsage, fmt.Errorf("%s: two services are named %s", d.file, key))
		} else {
			seen[key] = true
		}
		if len(args) == 1 && s.Name != args[0] {
			return nil, coded(exitUsage, fmt.Errorf("%s: holds the service %q, not %q", d.file, s.Name, args[0]))
		}
	}
	return services, nil
}

func readFile(path string, stdin io.Reader) ([]byte, error) {
	const most = 4 << 20
	var r = stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s is larger than %d MiB", path, most>>20)
	}
	return b, err
}

// service makes the manifest that the flags describe.
func (d *deployFlags) service(cmd *cobra.Command, name, namespace string) (*v1.Service, error) {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	t := &s.Spec.Template
	t.Annotations = map[string]string{}
	for _, kv := range d.annotations {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--annotation: %q is not KEY=VALUE", kv)
		}
		t.Annotations[k] = v
	}
	if err := serving.ValidateAnnotations(t.Annotations); err != nil {
		return nil, fmt.Errorf("--annotation: %w", err)
	}
	container := corev1.Container{Image: d.image}
	if d.pull {
		container.ImagePullPolicy = corev1.PullAlways
	}
	for _, kv := range d.env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--env: %q is not KEY=VALUE", kv)
		}
		container.Env = append(container.Env, corev1.EnvVar{Name: k, Value: v})
	}
	if d.port != 0 || d.protocol != "" {
		container.Ports = []corev1.ContainerPort{{Name: d.protocol, ContainerPort: d.port}}
	}
	limits := corev1.ResourceList{}
	for _, l := range []struct {
		flag, value string
		name        corev1.ResourceName
	}{{"memory", d.memory, corev1.ResourceMemory}, {"cpu", d.cpu, corev1.ResourceCPU}} {
		if l.value == "" {
			continue
		}
		q, err := resource.ParseQuantity(l.value)
		if err != nil {
			return nil, fmt.Errorf("--%s: %q is not a quantity such as 256Mi, 500m or 2", l.flag, l.value)
		}
		limits[l.name] = q
	}
	if q, ok := limits[corev1.ResourceMemory]; ok && q.Value() < serving.MinMemory {
		return nil, fmt.Errorf("--memory: %s is too small: a function needs at least %dMi", d.memory, serving.MinMemory>>20)
	}
	if len(limits) > 0 {
		container.Resources.Limits = limits
	}
	if cmd.Flags().Changed("concurrency") {
		t.Spec.ContainerConcurrency = &d.concurrency
	}
	if d.timeout != 0 {
		if d.timeout < time.Second || d.timeout%time.Second != 0 {
			return nil, fmt.Errorf("--timeout: %s is not a whole number of seconds", d.timeout)
		}
		seconds := int64(d.timeout / time.Second)
		t.Spec.TimeoutSeconds = &seconds
	}
	for flag, set := range map[string]func(){
		"min-scale": func() { t.Annotations[autoscaling.MinScaleAnnotationKey] = strconv.Itoa(d.minScale) },
		"max-scale": func() { t.Annotations[autoscaling.MaxScaleAnnotationKey] = strconv.Itoa(d.maxScale) },
		"sandbox":   func() { t.Annotations[serving.SandboxAnnotation] = d.sandbox },
		"egress":    func() { t.Annotations[serving.EgressAnnotation] = strconv.FormatBool(d.egress) },
	} {
		if cmd.Flags().Changed(flag) {
			set()
		}
	}
	t.Spec.Containers = []corev1.Container{container}
	if d.source != "" {
		// Checked below without an image, which is built later.
		t.Spec.Containers[0].Image = "image-to-be-built"
	}
	return s, validate(s)
}

// validate applies Knative's own rules before anything is sent or built.
func validate(s *v1.Service) error {
	c := s.DeepCopy()
	ctx := apis.WithinCreate(context.Background())
	c.SetDefaults(ctx)
	// Knative also warns of defaults that it may change one day.
	if err := c.Validate(ctx).Filter(apis.ErrorLevel); err != nil {
		return err
	}
	return nil
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
