package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

const helloManifest = `apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: hello
spec:
  template:
    spec:
      containers:
      - image: example.com/hello
        env: [{name: GREETING, value: hi}]
`

// kubectl runs the real one on a server.
type kubectl struct {
	path, kubeconfig, home string
}

func newKubectl(t *testing.T, kubeconfig string) kubectl {
	t.Helper()
	return kubectl{path: testenv.Tool(t, "kubectl", "kubernetes-client"), kubeconfig: kubeconfig, home: t.TempDir()}
}

func (k kubectl) command(ctx context.Context, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, k.path, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+k.kubeconfig, "HOME="+k.home)
	return command
}

func (k kubectl) try(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := k.command(ctx, args...)
	command.Stdin = strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	return string(out), err
}

func (k kubectl) run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := k.try(t, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (k kubectl) wants(t *testing.T, want, stdin string, args ...string) {
	t.Helper()
	if out := k.run(t, stdin, args...); !strings.Contains(out, want) {
		t.Errorf("kubectl %s: want %q in:\n%s", strings.Join(args, " "), want, out)
	}
}

func (k kubectl) fails(t *testing.T, want, stdin string, args ...string) {
	t.Helper()
	out, err := k.try(t, stdin, args...)
	if err == nil {
		t.Errorf("kubectl %s did not fail:\n%s", strings.Join(args, " "), out)
	}
	if !strings.Contains(out, want) {
		t.Errorf("kubectl %s: want %q in:\n%s", strings.Join(args, " "), want, out)
	}
}

func TestKubectl(t *testing.T) {
	t.Parallel()
	_, kubeconfig := start(t, t.TempDir())
	k := newKubectl(t, kubeconfig)

	t.Run("life of a service", func(t *testing.T) {
		k.wants(t, "created", helloManifest, "apply", "-f", "-")
		k.wants(t, "LATESTCREATED", "", "get", "ksvc")
		k.wants(t, "service.serving.knative.dev/hello", "", "get", "all")
		k.wants(t, "skep-admin", "", "get", "ksvc", "hello", "-o", `jsonpath={.metadata.annotations.serving\.knative\.dev/creator}`)
		k.wants(t, "300", "", "get", "ksvc", "hello", "-o", "jsonpath={.spec.template.spec.timeoutSeconds}")

		// Applying the same again changes nothing.
		k.run(t, helloManifest, "apply", "-f", "-")
		k.wants(t, "1", "", "get", "ksvc", "hello", "-o", "jsonpath={.metadata.generation}")
		changed := strings.Replace(helloManifest, "value: hi", "value: hello", 1)
		k.wants(t, "serverside-applied", changed, "apply", "--server-side", "--force-conflicts", "-f", "-")
		k.wants(t, "2", "", "get", "ksvc", "hello", "-o", "jsonpath={.metadata.generation}")
		k.wants(t, "patched", "", "patch", "ksvc", "hello", "--type=merge", "-p", `{"spec":{"template":{"spec":{"timeoutSeconds":20}}}}`)
		k.wants(t, "20", "", "get", "ksvc", "hello", "-o", "jsonpath={.spec.template.spec.timeoutSeconds}")
		k.wants(t, "labeled", "", "label", "ksvc", "hello", "team=bees")
		k.wants(t, "hello", "", "get", "ksvc", "-l", "team=bees", "-o", "name")
		k.wants(t, "patched", "", "patch", "ksvc", "hello", "--subresource=status", "--type=merge", "-p",
			`{"status":{"url":"http://hello.example","conditions":[{"type":"Ready","status":"True"}]}}`)
		k.wants(t, "http://hello.example", "", "get", "ksvc", "hello")
		k.wants(t, "True", "", "get", "ksvc", "hello", "--no-headers")
		k.wants(t, "condition met", "", "wait", "ksvc/hello", "--for=condition=Ready", "--timeout=20s")
		k.wants(t, "3", "", "get", "ksvc", "hello", "-o", "jsonpath={.metadata.generation}")
		k.wants(t, "GREETING", "", "describe", "ksvc", "hello")
		k.wants(t, "deleted", "", "delete", "ksvc", "hello")
		k.fails(t, "not found", "", "get", "ksvc", "hello")
	})
	t.Run("edit", func(t *testing.T) {
		k.run(t, strings.ReplaceAll(helloManifest, "name: hello", "name: edited"), "apply", "-f", "-")
		editor := filepath.Join(t.TempDir(), "editor")
		if err := os.WriteFile(editor, []byte("#!/bin/sh\nsed -i 's/value: hi/value: ho/' \"$1\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		command := k.command(t.Context(), "edit", "ksvc", "edited")
		command.Env = append(command.Env, "KUBE_EDITOR="+editor)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("kubectl edit: %v\n%s", err, out)
		}
		k.wants(t, "ho", "", "get", "ksvc", "edited", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}")
	})
	t.Run("explain", func(t *testing.T) {
		k.wants(t, "Container image name", "", "explain", "ksvc.spec.template.spec.containers.image")
		k.wants(t, "base64", "", "explain", "secret.data")
		k.wants(t, "opaque list", "", "explain", "namespace.spec.finalizers")
		k.wants(t, "openAPIV3Schema", "", "explain", "crd.spec.versions.schema")
	})
	t.Run("refusals", func(t *testing.T) {
		bad := func(old, new string) string {
			return strings.Replace(strings.ReplaceAll(helloManifest, "name: hello", "name: bad"), old, new, 1)
		}
		k.fails(t, `unknown field "spec.template.spec.containers[0].imagee"`, bad("image:", "imagee:"), "apply", "-f", "-")
		k.fails(t, ".spec.template.spec.containers[0].imagee: field not declared in schema", bad("image:", "imagee:"), "apply", "--server-side", "-f", "-")
		k.fails(t, "spec.template.spec.containers[0].image", bad("image: example.com/hello", `image: ""`), "apply", "-f", "-")
		k.fails(t, "missing field(s): spec.template.spec.containers[0].image", bad("image: example.com/hello", "name: x"), "apply", "-f", "-")
		k.fails(t, "expected 0 <= -1", bad("    spec:\n", "    spec:\n      containerConcurrency: -1\n"), "apply", "-f", "-")
		k.fails(t, `namespaces "nowhere" not found`, helloManifest, "create", "-n", "nowhere", "-f", "-")
		k.fails(t, "may not be deleted", "", "delete", "namespace", "default")
		k.fails(t, "Unauthorized", "", "get", "ksvc", "--token=wrong")
	})
	t.Run("immutable", func(t *testing.T) {
		named := strings.Replace(helloManifest, "  template:\n", "  template:\n    metadata: {name: hello-one}\n", 1)
		k.run(t, named, "apply", "-f", "-")
		k.fails(t, "Saw the following changes without a name change", strings.Replace(named, "value: hi", "value: ho", 1), "apply", "-f", "-")
		k.fails(t, "annotation value is immutable", "", "annotate", "--overwrite", "ksvc", "hello", "serving.knative.dev/creator=me")
	})
	t.Run("core", func(t *testing.T) {
		k.run(t, "", "create", "namespace", "core")
		k.wants(t, "core", "", "get", "namespaces", "--field-selector=metadata.name=core", "--no-headers")
		k.run(t, "", "-n", "core", "create", "secret", "generic", "s", "--from-literal=password=hidden")
		k.wants(t, "Opaque", "", "-n", "core", "get", "secret", "s")
		k.wants(t, "aGlkZGVu", "", "-n", "core", "get", "secret", "s", "-o", "jsonpath={.data.password}")
		k.run(t, "", "-n", "core", "create", "configmap", "c", "--from-literal=a=b")
		k.wants(t, "serverside-applied", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: d, namespace: core}\ndata: {x: text}\n", "apply", "--server-side", "-f", "-")
		k.wants(t, "created", "apiVersion: v1\nkind: Secret\nmetadata: {name: e, namespace: core}\nstringData: {x: text}\n", "apply", "-f", "-")
		k.wants(t, "dGV4dA==", "", "-n", "core", "get", "secret", "e", "-o", "jsonpath={.data.x}")
		k.run(t, "", "-n", "core", "create", "serviceaccount", "a")
		k.wants(t, "configmap/c", "", "-n", "core", "get", "configmaps,secrets,serviceaccounts", "-o", "name")
		k.fails(t, "already exists", "", "-n", "core", "create", "configmap", "c")
		k.run(t, "", "delete", "namespace", "core") // waits until it is gone
		k.fails(t, "not found", "", "get", "namespace", "core")
		k.wants(t, "No resources found", "", "-n", "core", "get", "secrets,configmaps,serviceaccounts")
	})
	t.Run("watch", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var seen lockedBuffer
		command := k.command(ctx, "get", "configmaps", "--watch", "--output-watch-events", "--no-headers")
		command.Stdout = &seen
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		k.run(t, "", "create", "configmap", "watched", "--from-literal=a=b")
		k.run(t, "", "delete", "configmap", "watched")
		eventually(t, func() (bool, string) {
			text := seen.String()
			return strings.Contains(text, "ADDED") && strings.Contains(text, "DELETED"), text
		})
		cancel()
		_ = command.Wait() // killed
	})
	t.Run("own kinds", func(t *testing.T) {
		k.run(t, `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: hives.example.com}
spec:
  group: example.com
  names: {kind: Hive, plural: hives}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {bees: {type: integer}}}}}}
`, "apply", "-f", "-")
		k.run(t, "", "wait", "--for=condition=Established", "crd/hives.example.com", "--timeout=30s")
		hive := "apiVersion: example.com/v1\nkind: Hive\nmetadata: {name: h}\nspec: {bees: 3}\n"
		eventually(t, func() (bool, string) {
			out, err := k.try(t, hive, "apply", "-f", "-")
			return err == nil, out
		})
		k.run(t, "", "delete", "crd", "hives.example.com")
	})
	t.Run("discovery", func(t *testing.T) {
		var groups struct{ Groups []struct{ Name string } }
		if err := json.Unmarshal([]byte(k.run(t, "", "get", "--raw", "/apis")), &groups); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, group := range groups.Groups {
			names = append(names, group.Name)
		}
		if got := strings.Join(names, " "); !strings.Contains(got, "serving.knative.dev") || !strings.Contains(got, "apiextensions.k8s.io") {
			t.Errorf("plain discovery has the groups %q", got)
		}
		k.wants(t, "ksvc", "", "api-resources")
		k.wants(t, "dev.knative.serving.v1.Service", "", "get", "--raw", "/openapi/v2")
		k.wants(t, "apis/serving.knative.dev/v1", "", "get", "--raw", "/openapi/v3")
		k.wants(t, "io.k8s.api.core.v1.Secret", "", "get", "--raw", "/openapi/v3/api/v1")
		if out := k.run(t, "", "get", "--raw", "/openapi/v3/api/v1"); strings.Contains(out, "__internal") {
			t.Error("internal versions show in OpenAPI")
		}
	})
}

// lockedBuffer is written by one and read by another.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
