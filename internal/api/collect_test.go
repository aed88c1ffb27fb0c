package api_test

import (
	"context"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

var (
	services   = schema.GroupVersionResource{Group: "serving.knative.dev", Version: "v1", Resource: "services"}
	configs    = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// family is an API to make owners and owned things in.
type family struct {
	t         *testing.T
	client    dynamic.Interface
	namespace string
}

func (f family) create(resource schema.GroupVersionResource, kind, name string, finalizers []string, owners ...*unstructured.Unstructured) *unstructured.Unstructured {
	f.t.Helper()
	obj := &unstructured.Unstructured{Object: map[string]any{}}
	obj.SetAPIVersion(resource.GroupVersion().String())
	obj.SetKind(kind)
	obj.SetName(name)
	obj.SetFinalizers(finalizers)
	if kind == "Service" {
		spec := map[string]any{"template": map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"image": "i"}}}}}
		obj.Object["spec"] = spec
	}
	block := true
	var refs []metav1.OwnerReference
	for _, o := range owners {
		refs = append(refs, metav1.OwnerReference{
			APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Name: o.GetName(), UID: o.GetUID(), BlockOwnerDeletion: &block,
		})
	}
	obj.SetOwnerReferences(refs)
	made, err := f.client.Resource(resource).Namespace(f.namespace).Create(f.t.Context(), obj, metav1.CreateOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return made
}

func (f family) delete(resource schema.GroupVersionResource, name string, policy metav1.DeletionPropagation) {
	f.t.Helper()
	err := f.client.Resource(resource).Namespace(f.namespace).Delete(f.t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f family) get(resource schema.GroupVersionResource, name string) *unstructured.Unstructured {
	f.t.Helper()
	obj, err := f.client.Resource(resource).Namespace(f.namespace).Get(f.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return obj
}

func (f family) gone(resource schema.GroupVersionResource, name string) {
	f.t.Helper()
	eventually(f.t, func() (bool, string) { return f.get(resource, name) == nil, name + " is still there" })
}

func (f family) release(resource schema.GroupVersionResource, name string) {
	f.t.Helper()
	_, err := f.client.Resource(resource).Namespace(f.namespace).Patch(f.t.Context(), name, "application/merge-patch+json",
		[]byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestCollector(t *testing.T) {
	t.Parallel()
	server, _ := start(t, t.TempDir())
	client, err := dynamic.NewForConfig(server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	in := func(t *testing.T, namespace string) family {
		f := family{t: t, client: client}
		f.create(namespaces, "Namespace", namespace, nil)
		f.namespace = namespace
		return f
	}
	t.Run("background", func(t *testing.T) {
		f := in(t, "background")
		owner := f.create(services, "Service", "owner", nil)
		child := f.create(configs, "ConfigMap", "child", nil, owner)
		f.create(configs, "ConfigMap", "grandchild", nil, child)
		f.create(configs, "ConfigMap", "stranger", nil)
		f.delete(services, "owner", metav1.DeletePropagationBackground)
		f.gone(configs, "child")
		f.gone(configs, "grandchild")
		if f.get(configs, "stranger") == nil {
			t.Error("a stranger is gone")
		}
	})
	t.Run("two owners", func(t *testing.T) {
		f := in(t, "two-owners")
		one, two := f.create(services, "Service", "one", nil), f.create(services, "Service", "two", nil)
		f.create(configs, "ConfigMap", "child", nil, one, two)
		f.delete(services, "one", metav1.DeletePropagationBackground)
		eventually(t, func() (bool, string) {
			child := f.get(configs, "child")
			if child == nil {
				t.Fatal("it went with one of its owners")
			}
			return len(child.GetOwnerReferences()) == 1, "it has both owners"
		})
		f.delete(services, "two", metav1.DeletePropagationBackground)
		f.gone(configs, "child")
	})
	t.Run("foreground", func(t *testing.T) {
		f := in(t, "foreground")
		owner := f.create(services, "Service", "owner", nil)
		f.create(configs, "ConfigMap", "held", []string{"example.com/held"}, owner)
		f.delete(services, "owner", metav1.DeletePropagationForeground)
		eventually(t, func() (bool, string) {
			held := f.get(configs, "held")
			return held != nil && held.GetDeletionTimestamp() != nil, "the dependent is not being deleted"
		})
		if f.get(services, "owner") == nil {
			t.Error("the owner did not wait")
		}
		f.release(configs, "held")
		f.gone(configs, "held")
		f.gone(services, "owner")
	})
	t.Run("orphan", func(t *testing.T) {
		f := in(t, "orphan")
		owner := f.create(services, "Service", "owner", nil)
		f.create(configs, "ConfigMap", "child", nil, owner)
		f.delete(services, "owner", metav1.DeletePropagationOrphan)
		f.gone(services, "owner")
		child := f.get(configs, "child")
		if child == nil || len(child.GetOwnerReferences()) != 0 {
			t.Errorf("the orphan is %v", child)
		}
	})
	t.Run("owner that never was", func(t *testing.T) {
		f := in(t, "never")
		ghost := &unstructured.Unstructured{}
		ghost.SetAPIVersion("serving.knative.dev/v1")
		ghost.SetKind("Service")
		ghost.SetName("ghost")
		ghost.SetUID("00000000-0000-0000-0000-000000000000")
		f.create(configs, "ConfigMap", "child", nil, ghost)
		f.gone(configs, "child")
	})
	t.Run("namespace", func(t *testing.T) {
		f := in(t, "terminated")
		f.create(services, "Service", "held", []string{"example.com/held"})
		f.create(configs, "ConfigMap", "c", nil)
		if err := client.Resource(namespaces).Delete(t.Context(), f.namespace, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		f.gone(configs, "c")
		namespace, err := client.Resource(namespaces).Get(t.Context(), f.namespace, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if phase, _, _ := unstructured.NestedString(namespace.Object, "status", "phase"); phase != "Terminating" {
			t.Errorf("the namespace is %s", phase)
		}
		late := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "late"}}}
		if _, err := client.Resource(configs).Namespace(f.namespace).Create(t.Context(), late, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("creating in a namespace being deleted: %v", err)
		}
		f.release(services, "held")
		eventually(t, func() (bool, string) {
			_, err := client.Resource(namespaces).Get(context.WithoutCancel(t.Context()), f.namespace, metav1.GetOptions{})
			return apierrors.IsNotFound(err), "the namespace is still there"
		})
	})
}
