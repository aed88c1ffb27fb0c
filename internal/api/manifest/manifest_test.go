package manifest

import (
	"strings"
	"testing"

	"knative.dev/serving/pkg/apis/config"
)

const service = `apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: hello
spec:
  template:
    spec:
      runtimeClassName: qemu
      containers:
      - image: example.com/hello
`

func TestDecode(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		in   string
		want []string
	}{
		"yaml":          {service, []string{"hello"}},
		"json":          {`{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"j"},"spec":{"template":{"spec":{"containers":[{"image":"i"}]}}}}`, []string{"j"}},
		"several":       {service + "---\n" + strings.Replace(service, "hello", "other", 1), []string{"hello", "other"}},
		"empty between": {"---\n# nothing\n---\n" + service + "---\n", []string{"hello"}},
		"windows":       {strings.ReplaceAll(service, "\n", "\r\n"), []string{"hello"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			services, err := Decode([]byte(test.in))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range services {
				got = append(got, s.Name)
				if s.Spec.Template.Spec.TimeoutSeconds == nil {
					t.Errorf("%s has no defaults", s.Name)
				}
			}
			if strings.Join(got, " ") != strings.Join(test.want, " ") {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	replace := func(old, new string) string { return strings.Replace(service, old, new, 1) }
	for name, test := range map[string]struct{ in, want string }{
		"nothing":        {"", "no Knative Service"},
		"not YAML":       {"a: b: c", "document 1: not valid YAML or JSON"},
		"a list":         {"- a\n- b\n", "document 1: not a Kubernetes object"},
		"unknown field":  {replace("image:", "imagee:"), `service "hello": unknown field "spec.template.spec.containers[0].imagee"`},
		"unknown at top": {service + "sepc: {}\n", `unknown field "sepc"`},
		"wrong case":     {replace("containers:", "Containers:"), `unknown field "spec.template.spec.Containers"`},
		"twice":          {replace("  name: hello", "  name: hello\n  name: bye"), "already set"},
		"wrong type":     {replace("containers:", "timeoutSeconds: soon\n      containers:"), "timeoutSeconds"},
		"another kind":   {replace("kind: Service", "kind: Deployment"), `kind "Deployment": want`},
		"core service":   {replace("serving.knative.dev/v1", "v1"), `apiVersion "v1"`},
		"no image":       {replace("image: example.com/hello", "name: a"), "missing field(s): spec.template.spec.containers[0].image"},
		"no name":        {replace("name: hello", "labels: {}"), "metadata.name is missing"},
		"second":         {service + "---\n" + replace("image:", "imagee:"), "document 2"},
		"forbidden":      {replace("containers:", "nodeName: host\n      containers:"), "must not set the field(s): spec.template.spec.nodeName"},
		"not text":       {"a: \xff", "UTF-8"},
		"large":          {strings.Repeat("#", MaxBytes+1), "larger than"},
		"many":           {strings.Repeat("---\na: b\n", MaxDocuments+2), "document 1"},
		"alias bomb": {"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
			"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n", "document 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Decode([]byte(test.in))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("want %q in: %v", test.want, err)
			}
		})
	}
}

func TestConfigIsWhole(t *testing.T) {
	t.Parallel()
	if knative.Defaults == nil || knative.Features == nil || knative.Autoscaler == nil {
		t.Fatal("Knative's configuration did not parse")
	}
	if knative.Features.PodSpecRuntimeClassName != config.Enabled {
		t.Error("runtimeClassName is not allowed")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(service))
	f.Add([]byte(service + "---\n" + service))
	f.Add([]byte(`{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"j","annotations":{"autoscaling.knative.dev/minScale":"1"}},"spec":{"template":{"spec":{"containers":[{"image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1"}},"readinessProbe":{"httpGet":{"path":"/"}}}]}},"traffic":[{"percent":100,"latestRevision":true}]}}`))
	f.Add([]byte("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: i}, null], volumes: [{name: v, projected: {sources: [null]}}]}}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		services, err := Decode(data)
		if err == nil && len(services) == 0 {
			t.Error("neither a service nor an error")
		}
		for _, s := range services {
			if s.Name == "" && s.GenerateName == "" || len(s.Spec.Template.Spec.Containers) == 0 {
				t.Errorf("accepted %+v", s)
			}
		}
	})
}
