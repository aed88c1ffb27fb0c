package serving

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"knative.dev/pkg/apis"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	apiserving "knative.dev/serving/pkg/apis/serving"

	"github.com/skep-dev/skep/internal/gateway"
)

var testDefaults = Defaults{Driver: "gvisor", IdleAfter: 60 * time.Second}

// revisionFrom makes a revision of a template's YAML, with Knative's defaults.
func revisionFrom(t *testing.T, template string) *v1.Revision {
	t.Helper()
	var tpl v1.RevisionTemplateSpec
	if err := yaml.UnmarshalStrict([]byte(template), &tpl); err != nil {
		t.Fatal(err)
	}
	r := &v1.Revision{ObjectMeta: tpl.ObjectMeta, Spec: tpl.Spec}
	r.Name, r.Namespace = "fn-00001", "ns"
	r.Labels = map[string]string{apiserving.ServiceLabelKey: "fn"}
	r.SetDefaults(apis.WithinCreate(context.Background()))
	return r
}

func TestTranslateDefaults(t *testing.T) {
	p, err := translate(revisionFrom(t, `{spec: {containers: [{image: hello}]}}`), testDefaults)
	if err != nil {
		t.Fatal(err)
	}
	l := p.fleet.Launch
	if l.Namespace != "ns" || l.Service != "fn" || l.Revision != "fn-00001" || l.Image != "hello" || l.Driver != "gvisor" {
		t.Errorf("names: %+v", l)
	}
	if l.Port != 8080 || l.Egress || l.Probe.HTTPPath != "" {
		t.Errorf("port %d, egress %v, probe %+v", l.Port, l.Egress, l.Probe)
	}
	r := l.Resources
	if r.MemoryBytes != DefaultMemory || r.CPUMillis != DefaultCPUMillis || r.DiskBytes != DefaultDisk || r.PIDs != DefaultPIDs {
		t.Errorf("resources: %+v", r)
	}
	if p.deadline != defaultDeadline || l.StartTimeout != defaultDeadline || p.initial != 1 || p.alwaysPull {
		t.Errorf("plan: %+v", p)
	}
	a := p.fleet.Policy
	if a.MinScale != 0 || a.MaxScale != 0 || a.Target != defaultTarget || a.IdleAfter != time.Minute || a.StableWindow != time.Minute {
		t.Errorf("policy: %+v", a)
	}
	if p.gateway.Protocol != "" && p.gateway.Protocol != gateway.HTTP1 || p.gateway.Timeout != 300*time.Second {
		t.Errorf("gateway: %+v", p.gateway)
	}
}

func TestTranslateFields(t *testing.T) {
	p, err := translate(revisionFrom(t, `
metadata:
  annotations:
    skep.dev/sandbox: qemu
    skep.dev/egress: "true"
    skep.dev/disk: 64Mi
    serving.knative.dev/progress-deadline: 45s
    autoscaling.knative.dev/min-scale: "1"
    autoscaling.knative.dev/max-scale: "7"
    autoscaling.knative.dev/initial-scale: "2"
    autoscaling.knative.dev/target: "3"
    autoscaling.knative.dev/window: 20s
    autoscaling.knative.dev/scale-to-zero-pod-retention-period: 90s
spec:
  containerConcurrency: 5
  timeoutSeconds: 12
  containers:
    - image: hello:v1
      imagePullPolicy: Always
      command: [/a]
      args: [b, c]
      workingDir: /w
      env: [{name: K, value: "v=1"}]
      ports: [{name: h2c, containerPort: 9000}]
      resources: {limits: {memory: 64Mi, cpu: 250m}}
      securityContext: {runAsUser: 1000, runAsGroup: 2000}
      readinessProbe: {httpGet: {path: /ready, port: 9001}, timeoutSeconds: 3}
`), testDefaults)
	if err != nil {
		t.Fatal(err)
	}
	l := p.fleet.Launch
	if l.Driver != "qemu" || !l.Egress || l.Port != 9000 || l.User != "1000:2000" || l.WorkingDir != "/w" {
		t.Errorf("launch: %+v", l)
	}
	if !reflect.DeepEqual(l.Command, []string{"/a"}) || !reflect.DeepEqual(l.Args, []string{"b", "c"}) || !reflect.DeepEqual(l.Env, []string{"K=v=1"}) {
		t.Errorf("process: %q %q %q", l.Command, l.Args, l.Env)
	}
	if l.Resources.MemoryBytes != 64<<20 || l.Resources.CPUMillis != 250 || l.Resources.DiskBytes != 64<<20 {
		t.Errorf("resources: %+v", l.Resources)
	}
	if l.Probe.HTTPPath != "/ready" || l.Probe.Port != 9001 || l.Probe.Timeout != 3*time.Second {
		t.Errorf("probe: %+v", l.Probe)
	}
	if p.gateway.Protocol != gateway.H2C || p.gateway.ContainerConcurrency != 5 || p.gateway.Timeout != 12*time.Second {
		t.Errorf("gateway: %+v", p.gateway)
	}
	a := p.fleet.Policy
	if a.MinScale != 1 || a.MaxScale != 7 || a.Target != 3 || a.StableWindow != 20*time.Second || a.IdleAfter != 90*time.Second {
		t.Errorf("policy: %+v", a)
	}
	if p.deadline != 45*time.Second || p.initial != 2 || !p.alwaysPull {
		t.Errorf("plan: %+v", p)
	}
}

// The window of a revision is honoured, whatever the node's idle time is.
func TestTranslateWindow(t *testing.T) {
	for _, tt := range []struct {
		node              time.Duration
		window, retention string // "": no annotation
		wantWindow, idle  time.Duration
	}{
		{time.Minute, "", "", time.Minute, time.Minute},
		{time.Second, "", "", time.Second, time.Second},
		{5 * time.Minute, "", "", time.Minute, 5 * time.Minute},
		{time.Minute, "6s", "", 6 * time.Second, 6 * time.Second},
		{time.Minute, "10m", "", 10 * time.Minute, 10 * time.Minute},
		{time.Second, "1h", "", time.Hour, time.Hour},
		{time.Minute, "6s", "90s", 6 * time.Second, 90 * time.Second},
		{time.Minute, "10m", "0s", 10 * time.Minute, 0}, // in effect the window
	} {
		annotations := map[string]string{}
		if tt.window != "" {
			annotations["autoscaling.knative.dev/window"] = tt.window
		}
		if tt.retention != "" {
			annotations["autoscaling.knative.dev/scale-to-zero-pod-retention-period"] = tt.retention
		}
		r := revisionFrom(t, `{spec: {containers: [{image: hello}]}}`)
		r.Annotations = annotations
		p, err := translate(r, Defaults{Driver: "gvisor", IdleAfter: tt.node})
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if a := p.fleet.Policy; a.StableWindow != tt.wantWindow || a.IdleAfter != tt.idle {
			t.Errorf("%+v: window %s, idle after %s", tt, a.StableWindow, a.IdleAfter)
		}
	}
}

// What is wrong is refused with the field's name; what is not supported is
// never ignored.
func TestTranslateErrors(t *testing.T) {
	const in = "spec.template.spec.containers[0]."
	annotation := func(key, value string) string {
		return `{metadata: {annotations: {` + key + `: "` + value + `"}}, spec: {containers: [{image: i}]}}`
	}
	container := func(fields string) string { return `{spec: {containers: [{image: i, ` + fields + `}]}}` }
	tests := []struct{ name, template, want string }{
		{"two containers", `{spec: {containers: [{image: a}, {image: b}]}}`, "has 2 containers"},
		{"volumes", `{spec: {volumes: [{name: v, emptyDir: {}}], containers: [{image: i}]}}`, "volumes: not supported"},
		{"init containers", `{spec: {initContainers: [{image: i}], containers: [{image: i}]}}`, "initContainers: not supported"},
		{"envFrom", container(`envFrom: [{secretRef: {name: s}}]`), in + "envFrom"},
		{"valueFrom", container(`env: [{name: A, value: x}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k}}}]`), in + "env[1].valueFrom"},
		{"two ports", container(`ports: [{containerPort: 1}, {containerPort: 2}]`), in + "ports"},
		{"port name", container(`ports: [{name: grpc, containerPort: 1}]`), in + "ports[0].name"},
		{"liveness", container(`livenessProbe: {httpGet: {path: /}}`), in + "livenessProbe"},
		{"exec probe", container(`readinessProbe: {exec: {command: [a]}}`), in + "readinessProbe.exec"},
		{"grpc probe", container(`readinessProbe: {grpc: {port: 1}}`), in + "readinessProbe.grpc"},
		{"little memory", container(`resources: {limits: {memory: 1Mi}}`), in + "resources.limits.memory: 1Mi is too small"},
		{"little memory requested", container(`resources: {requests: {memory: 2Mi}}`), in + "resources.requests.memory: 2Mi is too small"},
		{"little cpu", container(`resources: {limits: {cpu: 1m}}`), in + "resources.limits.cpu"},
		{"egress", annotation(EgressAnnotation, "perhaps"), EgressAnnotation + `: "perhaps"`},
		{"disk", annotation(DiskAnnotation, "much"), DiskAnnotation},
		{"little disk", annotation(DiskAnnotation, "1"), DiskAnnotation},
		{"deadline", annotation("serving.knative.dev/progress-deadline", "soon"), "progress-deadline"},
		{"min scale", annotation("autoscaling.knative.dev/min-scale", "-1"), "min-scale"},
		{"target", annotation("autoscaling.knative.dev/target", "0"), "target"},
		{"window", annotation("autoscaling.knative.dev/window", "wide"), "window"},
		{"short window", annotation("autoscaling.knative.dev/window", "5s"), "window: 5s is not between 6s and 1h"},
		{"long window", annotation("autoscaling.knative.dev/window", "61m"), "window: 61m is not between 6s and 1h"},
		{"min above max", `{metadata: {annotations: {autoscaling.knative.dev/min-scale: "3", autoscaling.knative.dev/max-scale: "2"}}, spec: {containers: [{image: i}]}}`, "3 is above"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := translate(revisionFrom(t, tt.template), testDefaults)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}
