package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func TestKubectl(t *testing.T) {
	t.Parallel()
	testenv.Tool(t, "kubectl", "kubectl")
	s := shared(t)
	if info, err := os.Stat(s.Endpoints.Kubeconfig); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig: %v, error %v", info.Mode(), err)
	}
	name := unique("kube")
	service := func(version, extra string) string {
		return strings.ReplaceAll(manifest("kube", `autoscaling.knative.dev/max-scale: "2"`, probeRef, "env: [{name: VERSION, value: "+version+"}]"+extra), "NAME", name)
	}
	if out := s.kubectlOK(service("one", ""), "apply", "-f", "-"); !strings.Contains(out, "created") {
		t.Errorf("apply: %q", out)
	}
	s.deleteAtEnd(name)
	s.kubectlOK("", "wait", "ksvc/"+name, "--for=condition=Ready", "--timeout=80s")
	for _, w := range []string{"URL", "READY", "http://" + name + ".default.", "True", name + "-00001"} {
		if out := s.kubectlOK("", "get", "ksvc", name); !strings.Contains(out, w) {
			t.Errorf("get ksvc lacks %q:\n%s", w, out)
		}
	}
	out := s.kubectlOK("", "get", "revisions,configurations,routes")
	for _, w := range []string{"revision.serving.knative.dev/" + name + "-00001", "configuration.serving.knative.dev/" + name, "route.serving.knative.dev/" + name} {
		if !strings.Contains(out, w) {
			t.Errorf("get lacks %q:\n%s", w, out)
		}
	}
	if r := s.get(name, "/"); r.body != "probe one\n" {
		t.Errorf("answers %q", r.body)
	}
	// The same again changes nothing (kubectl says "configured", as it does
	// with Knative), something else makes a revision.
	s.kubectlOK(service("one", ""), "apply", "-f", "-")
	if out := s.kubectlOK("", "get", "ksvc", name, "-o", "jsonpath={.metadata.generation}"); out != "1" {
		t.Errorf("generation after applying the same again: %s", out)
	}
	s.kubectlOK(service("two", ""), "apply", "-f", "-")
	s.kubectlOK("", "wait", "ksvc/"+name, "--for=jsonpath={.status.latestReadyRevisionName}="+name+"-00002", "--timeout=80s")
	if r := s.get(name, "/"); r.body != "probe two\n" {
		t.Errorf("answers %q", r.body)
	}
	// A failure is in the conditions and the events.
	s.kubectlOK(service("three", "\n        command: [/no/such/program]"), "apply", "-f", "-")
	s.kubectlOK("", "wait", "ksvc/"+name, "--for=condition=Ready=False", "--timeout=80s")
	for _, kind := range []string{"ksvc/" + name, "revision/" + name + "-00003"} {
		eventually(t, "describe to tell", func() string {
			if out := s.kubectlOK("", "describe", kind); !strings.Contains(out, "/no/such/program") || !strings.Contains(out, "Warning") {
				return out
			}
			return ""
		})
	}
	if out := s.kubectlOK("", "get", "events", "--field-selector", "type=Warning"); !strings.Contains(out, "/no/such/program") {
		t.Errorf("get events:\n%s", out)
	}
	if r := s.get(name, "/"); r.body != "probe two\n" {
		t.Errorf("answers %q", r.body)
	}
	s.kubectlOK("", "patch", "ksvc", name, "--type=json", `-p=[{"op":"remove","path":"/spec/template/spec/containers/0/command"}]`)
	s.kubectlOK("", "wait", "ksvc/"+name, "--for=condition=Ready", "--timeout=80s")
	if out := s.kubectlOK("", "get", "ksvc", name, "-o", "jsonpath={.status.latestReadyRevisionName}"); out != name+"-00004" {
		t.Errorf("the ready revision is %s", out)
	}

	s.kubectlOK("", "delete", "ksvc", name, "--timeout=60s")
	s.atZero(name)
	eventually(t, "everything below the service to go", func() string {
		return s.kubectlOK("", "get", "revisions,configurations,routes", "-l", "serving.knative.dev/service="+name, "-o", "name")
	})
}

// TestKubectlRefusals: what the API must not take, with the field named.
func TestKubectlRefusals(t *testing.T) {
	t.Parallel()
	testenv.Tool(t, "kubectl", "kubectl")
	s := shared(t)
	name := unique("refused")
	for _, c := range []struct{ name, container, word string }{
		{"unknown field", "imagee: x", "imagee"},
		{"bad quantity", "resources: {limits: {memory: lots}}", "memory"},
		{"two ports", "ports: [{containerPort: 80}, {containerPort: 81}]", "ports"},
		{"concurrency", "name: x\n      containerConcurrency: -3", "containerConcurrency"},
		{"host network", "name: x\n      hostNetwork: true", "hostNetwork"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			out, err := s.kubectl(strings.ReplaceAll(manifest("", "{}", probeRef, c.container), "NAME", name), "apply", "-f", "-")
			if err == nil || !strings.Contains(out, c.word) {
				t.Errorf("apply: error %v, does not say %q:\n%s", err, c.word, out)
			}
		})
	}
	// What Knative knows and Skep does not is said, not ignored.
	for _, c := range []struct{ name, container, word string }{
		{"memory too small", "resources: {limits: {memory: 1Mi}}", "16Mi"},
		{"volumes", "volumeMounts: [{name: v, mountPath: /v}]\n      volumes: [{name: v, emptyDir: {}}]", "volumes"},
		{"sandbox", "name: x", "chroot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &skep{s.Skep, t}
			name := unique("refused")
			annotation := "{}"
			if c.name == "sandbox" {
				annotation = "skep.dev/sandbox: chroot"
			}
			out, err := s.kubectl(strings.ReplaceAll(manifest("", annotation, probeRef, c.container), "NAME", name), "apply", "-f", "-")
			if err != nil { // refused at once is fine, too
				if !strings.Contains(out, c.word) {
					t.Errorf("apply: %v: %s", err, out)
				}
				return
			}
			s.deleteAtEnd(name)
			s.kubectlOK("", "wait", "ksvc/"+name, "--for=condition=Ready=False", "--timeout=60s")
			if out := s.kubectlOK("", "get", "ksvc", name, "-o", "jsonpath={.status.conditions}"); !strings.Contains(out, c.word) {
				t.Errorf("the conditions do not say %q: %s", c.word, out)
			}
		})
	}
}
