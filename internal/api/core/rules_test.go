package core

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

func TestSecretRules(t *testing.T) {
	t.Parallel()
	yes := true
	for name, test := range map[string]struct {
		old, new *corev1.Secret
		want     string
	}{
		"plain":          {nil, &corev1.Secret{Data: map[string][]byte{"a": {1}}}, ""},
		"bad key":        {nil, &corev1.Secret{Data: map[string][]byte{"a/b": {1}}}, "data[a/b]"},
		"too large":      {nil, &corev1.Secret{Data: map[string][]byte{"a": make([]byte, maxDataBytes+1)}}, "may not be more than"},
		"no credentials": {nil, &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson}, "data[.dockerconfigjson]"},
		"not JSON":       {nil, &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{".dockerconfigjson": []byte("hunter2")}}, "not valid JSON"},
		"other type":     {&corev1.Secret{}, &corev1.Secret{Type: "x"}, "type: Invalid value"},
		"immutable": {
			&corev1.Secret{Type: corev1.SecretTypeOpaque, Immutable: &yes},
			&corev1.Secret{Data: map[string][]byte{"a": {1}}}, "field is immutable",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prepareSecret(test.new, nil)
			var errs string
			if test.old == nil {
				if all := validateSecret(test.new, nil).ToAggregate(); all != nil {
					errs = all.Error()
				}
			} else {
				prepareSecret(test.old, nil)
				if all := validateSecret(test.new, test.old).ToAggregate(); all != nil {
					errs = all.Error()
				}
			}
			if test.want == "" && errs != "" || !strings.Contains(errs, test.want) {
				t.Errorf("want %q in %q", test.want, errs)
			}
			if strings.Contains(errs, "hunter2") {
				t.Error("the error tells the secret")
			}
		})
	}
}

func TestConfigMapRules(t *testing.T) {
	t.Parallel()
	twice := &corev1.ConfigMap{Data: map[string]string{"a": ""}, BinaryData: map[string][]byte{"a": nil}}
	if errs := validateConfigMap(twice, nil); len(errs) != 1 {
		t.Errorf("a key in both: %v", errs)
	}
	if errs := validateConfigMap(&corev1.ConfigMap{}, &corev1.ConfigMap{}); len(errs) != 0 {
		t.Errorf("nothing: %v", errs)
	}
}

func TestNamespaceRules(t *testing.T) {
	t.Parallel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	prepareNamespace(ns, nil)
	prepareNamespace(ns, ns)
	if len(ns.Finalizers) != 1 || ns.Labels[corev1.LabelMetadataName] != "n" || ns.Status.Phase != corev1.NamespaceActive {
		t.Errorf("prepared: %+v", ns)
	}
	now := metav1.Now()
	ns.DeletionTimestamp, ns.Finalizers = &now, nil
	prepareNamespace(ns, ns)
	list := &corev1.NamespaceList{Items: []corev1.Namespace{*ns}}
	decorateNamespace(list)
	if len(ns.Finalizers) != 0 || list.Items[0].Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("being deleted: %+v", ns)
	}
}

func TestDefinitionsAreWhole(t *testing.T) {
	t.Parallel()
	all := Definitions(func(name string) spec.Ref { return spec.MustCreateRef("#/" + name) })
	for _, name := range []string{"Namespace", "SecretList", "ConfigMap", "ServiceAccount", "Event", "ObjectReference"} {
		definition, ok := all["io.k8s.api.core.v1."+name]
		if !ok || len(definition.Schema.Properties) == 0 || definition.Schema.Description == "" {
			t.Errorf("%s: %v", name, definition.Schema)
		}
	}
	for name, definition := range all {
		for _, dependency := range definition.Dependencies {
			if _, ok := all[dependency]; !ok && strings.HasPrefix(dependency, "io.k8s.api.") {
				t.Errorf("%s needs %s, which is missing", name, dependency)
			}
		}
	}
}
