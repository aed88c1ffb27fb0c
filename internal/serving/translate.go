package serving

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apiserving "knative.dev/serving/pkg/apis/serving"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/fleet"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Annotations of a revision template that are Skep's own.
const (
	// SandboxAnnotation chooses the sandbox driver: firecracker, gvisor, qemu or runc.
	SandboxAnnotation = "skep.dev/sandbox"
	// EgressAnnotation "true" lets the function reach the internet.
	EgressAnnotation = "skep.dev/egress"
	// DiskAnnotation bounds what the function may write to its root file
	// system, as a quantity: "512Mi".
	DiskAnnotation = "skep.dev/disk"
)

// Limits and defaults of a function.
const (
	DefaultMemory    = 256 << 20 // bytes
	MinMemory        = 16 << 20
	DefaultDisk      = 512 << 20
	DefaultCPUMillis = 1000
	DefaultPIDs      = 1024
	defaultPort      = 8080
	defaultDeadline  = 120 * time.Second // from created to ready
	defaultWindow    = 60 * time.Second
	grace            = 10 * time.Second
	// defaultTarget is how many requests at a time an instance without a
	// concurrency limit is meant to serve (Knative's default).
	defaultTarget = 100
)

// Defaults are what a service gets if it does not say otherwise.
type Defaults struct {
	Driver    string        // sandbox driver
	IdleAfter time.Duration // how long the last idle instance is kept
	Snapshot  snapshots.Options
}

// plan is a revision in the terms of the packages below.
type plan struct {
	fleet    fleet.Spec
	gateway  gateway.Revision
	deadline time.Duration // from start to ready
	initial  int           // instances to prove before the revision is ready
	// alwaysPull asks the registry even for a reference that the node has.
	alwaysPull bool
}

// translate reads a revision. The error names the field of the service that
// is wrong and what to do.
func translate(r *v1.Revision, d Defaults) (*plan, error) {
	key := gateway.RevisionKey{Namespace: r.Namespace, Name: r.Name}
	if len(r.Spec.Containers) != 1 {
		return nil, fmt.Errorf("spec.template.spec.containers: has %d containers; a function has one", len(r.Spec.Containers))
	}
	c := &r.Spec.Containers[0]
	if err := unsupported(&r.Spec.PodSpec, c); err != nil {
		return nil, err
	}
	p := &plan{deadline: defaultDeadline, initial: 1}
	p.gateway = gateway.Revision{Key: key}
	p.fleet = fleet.Spec{Key: key, Grace: grace, Launch: node.Launch{
		Namespace: r.Namespace, Service: r.Labels[apiserving.ServiceLabelKey], Revision: r.Name,
		Image: c.Image, Driver: d.Driver,
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, Port: defaultPort,
		Resources: sandbox.Resources{PIDs: DefaultPIDs},
	}}
	for _, step := range []func(*v1.Revision, *corev1.Container, Defaults) error{
		p.annotations, p.snapshots, p.container, p.resources, p.scale,
	} {
		if err := step(r, c, d); err != nil {
			return nil, err
		}
	}
	p.fleet.Launch.StartTimeout = p.deadline
	p.gateway.QueueTimeout = p.deadline
	return p, nil
}

// unsupported refuses what would otherwise be ignored in silence.
func unsupported(pod *corev1.PodSpec, c *corev1.Container) error {
	const in = "spec.template.spec."
	switch {
	case len(pod.Volumes) > 0:
		return fmt.Errorf("%svolumes: not supported yet; put the files into the image", in)
	case len(pod.InitContainers) > 0:
		return fmt.Errorf("%sinitContainers: not supported", in)
	case len(c.EnvFrom) > 0:
		return fmt.Errorf("%scontainers[0].envFrom: not supported yet; use env with values", in)
	case len(c.Ports) > 1:
		return fmt.Errorf("%scontainers[0].ports: has %d ports; a function has one", in, len(c.Ports))
	case c.LivenessProbe != nil:
		return fmt.Errorf("%scontainers[0].livenessProbe: not supported yet", in)
	}
	for i := range c.Env {
		if c.Env[i].ValueFrom != nil {
			return fmt.Errorf("%scontainers[0].env[%d].valueFrom: not supported yet; use value", in, i)
		}
	}
	return nil
}

func (p *plan) annotations(r *v1.Revision, _ *corev1.Container, _ Defaults) error {
	const in = "spec.template.metadata.annotations."
	if v := r.Annotations[SandboxAnnotation]; v != "" {
		p.fleet.Launch.Driver = v
	}
	if v, ok := r.Annotations[EgressAnnotation]; ok {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%s%s: %q is neither true nor false", in, EgressAnnotation, v)
		}
		p.fleet.Launch.Egress = b
	}
	p.fleet.Launch.Resources.DiskBytes = DefaultDisk
	if v, ok := r.Annotations[DiskAnnotation]; ok {
		q, err := resource.ParseQuantity(v)
		if err != nil || q.Value() < 1<<20 {
			return fmt.Errorf("%s%s: %q is not a quantity of at least 1Mi", in, DiskAnnotation, v)
		}
		p.fleet.Launch.Resources.DiskBytes = q.Value()
	}
	if v, ok := r.Annotations[apiserving.ProgressDeadlineAnnotationKey]; ok {
		t, err := time.ParseDuration(v)
		if err != nil || t <= 0 {
			return fmt.Errorf("%s%s: %q is not a positive duration such as 90s", in, apiserving.ProgressDeadlineAnnotationKey, v)
		}
		p.deadline = t
	}
	return nil
}

func (p *plan) container(r *v1.Revision, c *corev1.Container, _ Defaults) error {
	const in = "spec.template.spec.containers[0]."
	l := &p.fleet.Launch
	p.alwaysPull = c.ImagePullPolicy == corev1.PullAlways
	for _, e := range c.Env {
		l.Env = append(l.Env, e.Name+"="+e.Value)
	}
	if len(c.Ports) == 1 {
		if c.Ports[0].ContainerPort != 0 {
			l.Port = int(c.Ports[0].ContainerPort)
		}
		switch c.Ports[0].Name {
		case "h2c":
			p.gateway.Protocol = gateway.H2C
		case "", "http1", "user-port":
		default:
			return fmt.Errorf("%sports[0].name: %q is neither http1 nor h2c", in, c.Ports[0].Name)
		}
	}
	if s := c.SecurityContext; s != nil && s.RunAsUser != nil {
		l.User = strconv.FormatInt(*s.RunAsUser, 10)
		if s.RunAsGroup != nil {
			l.User += ":" + strconv.FormatInt(*s.RunAsGroup, 10)
		}
	}
	if r.Spec.ContainerConcurrency != nil {
		p.gateway.ContainerConcurrency = int(*r.Spec.ContainerConcurrency)
	}
	if r.Spec.TimeoutSeconds != nil {
		p.gateway.Timeout = time.Duration(*r.Spec.TimeoutSeconds) * time.Second
	}
	if r.Spec.ResponseStartTimeoutSeconds != nil {
		p.gateway.ResponseStartTimeout = time.Duration(*r.Spec.ResponseStartTimeoutSeconds) * time.Second
	}
	return p.probe(c.ReadinessProbe)
}

func (p *plan) probe(probe *corev1.Probe) error {
	if probe == nil {
		return nil
	}
	const in = "spec.template.spec.containers[0].readinessProbe."
	t := &p.fleet.Launch.Probe
	t.Timeout = time.Duration(probe.TimeoutSeconds) * time.Second
	switch {
	case probe.Exec != nil:
		return fmt.Errorf("%sexec: not supported; use httpGet or tcpSocket", in)
	case probe.GRPC != nil:
		return fmt.Errorf("%sgrpc: not supported yet; use tcpSocket", in)
	case probe.HTTPGet != nil:
		t.HTTPPath = probe.HTTPGet.Path
		if t.HTTPPath == "" {
			t.HTTPPath = "/"
		}
		t.Port = probe.HTTPGet.Port.IntValue()
		t.Headers = http.Header{}
		for _, h := range probe.HTTPGet.HTTPHeaders {
			t.Headers.Add(h.Name, h.Value)
		}
	case probe.TCPSocket != nil:
		t.Port = probe.TCPSocket.Port.IntValue()
	}
	return nil
}

func (p *plan) resources(_ *v1.Revision, c *corev1.Container, _ Defaults) error {
	const in = "spec.template.spec.containers[0].resources."
	r := &p.fleet.Launch.Resources
	r.MemoryBytes, r.CPUMillis = DefaultMemory, DefaultCPUMillis
	quantity := func(name corev1.ResourceName) (resource.Quantity, string, bool) {
		if q, ok := c.Resources.Limits[name]; ok {
			return q, in + "limits." + string(name), true
		}
		q, ok := c.Resources.Requests[name]
		return q, in + "requests." + string(name), ok
	}
	if q, field, ok := quantity(corev1.ResourceMemory); ok {
		if q.Value() < MinMemory {
			return fmt.Errorf("%s: %s is too small: a function needs at least 16Mi", field, q.String())
		}
		r.MemoryBytes = q.Value()
	}
	if q, field, ok := quantity(corev1.ResourceCPU); ok {
		if q.MilliValue() < 10 {
			return fmt.Errorf("%s: %s is too small: a function needs at least 10m", field, q.String())
		}
		r.CPUMillis = q.MilliValue()
	}
	return nil
}
