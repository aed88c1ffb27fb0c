// Package core serves a small part of Kubernetes' core/v1: namespaces,
// secrets, configmaps, serviceaccounts and events, as far as Knative's users
// and tools need them.
//
// A namespace carries a finalizer (Finalizer) from its birth: whoever empties
// a deleted namespace removes it. Events are forgotten after an hour. There
// are no pods, no nodes and no Kubernetes services: functions run elsewhere.
package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

var (
	// The versioned types alone, as they are seen from outside.
	external = newScheme(corev1.SchemeGroupVersion)
	// The API machinery works on an internal version of every type. Here it
	// is the same Go type under a second version, so nothing is converted.
	scheme = newScheme(corev1.SchemeGroupVersion, schema.GroupVersion{Version: runtime.APIVersionInternal})
	codecs = serializer.NewCodecFactory(scheme)
)

// Scheme is the scheme of the types served, without internal versions; do not
// change it.
func Scheme() *runtime.Scheme { return external }

func newScheme(versions ...schema.GroupVersion) *runtime.Scheme {
	s := runtime.NewScheme()
	for _, gv := range versions {
		s.AddKnownTypes(gv,
			&corev1.Namespace{}, &corev1.NamespaceList{},
			&corev1.Secret{}, &corev1.SecretList{},
			&corev1.ConfigMap{}, &corev1.ConfigMapList{},
			&corev1.ServiceAccount{}, &corev1.ServiceAccountList{},
			&corev1.Event{}, &corev1.EventList{},
		)
	}
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	s.AddUnversionedTypes(corev1.SchemeGroupVersion,
		&metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	utilruntime.Must(s.SetVersionPriority(corev1.SchemeGroupVersion))
	for _, r := range resources {
		utilruntime.Must(s.AddFieldLabelConversionFunc(corev1.SchemeGroupVersion.WithKind(r.kind), fieldLabels(r)))
	}
	return s
}

// fieldLabels says which fields a list may be selected by.
func fieldLabels(r resource) runtime.FieldLabelConversionFunc {
	return func(label, value string) (string, string, error) {
		if r.fields != nil && r.fields(r.new()).Has(label) {
			return label, value, nil
		}
		return runtime.DefaultMetaV1FieldSelectorConversion(label, value)
	}
}

// selectable are the fields of an object that a list may be selected by.
func selectable(r resource, obj runtime.Object, meta metav1.Object) fields.Set {
	set := fields.Set{}
	if r.fields != nil {
		set = r.fields(obj)
	}
	set["metadata.name"] = meta.GetName()
	if r.namespaced {
		set["metadata.namespace"] = meta.GetNamespace()
	}
	return set
}
