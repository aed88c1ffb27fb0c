package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/autoscaling"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/api/manifest"
	"github.com/skep-dev/skep/internal/serving"
)

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
