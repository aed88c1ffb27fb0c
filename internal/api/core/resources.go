package core

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Finalizer keeps a deleted namespace until it is empty.
const Finalizer = "skep.dev/namespace-content"

// Events are forgotten this long after they were last written.
const eventSeconds = 3600

// resource describes one kind: what it is called and how it behaves.
type resource struct {
	plural, singular, kind string
	short                  []string
	namespaced             bool
	ttl                    uint64 // seconds; 0: for ever
	new, newList           func() runtime.Object

	// prepare completes an object before it is checked; old is nil for a new one.
	prepare func(obj, old runtime.Object)
	// validate checks an object; old is nil for a new one.
	validate func(obj, old runtime.Object) field.ErrorList
	// decorate changes what is read.
	decorate func(obj runtime.Object)
	// fields are those that lists may be selected by.
	fields func(obj runtime.Object) fields.Set
	// columns and cells print it; the age comes last by itself.
	columns []metav1.TableColumnDefinition
	cells   func(obj runtime.Object) []any
}

var resources = []resource{
	{
		plural: "namespaces", singular: "namespace", kind: "Namespace", short: []string{"ns"},
		new:      func() runtime.Object { return &corev1.Namespace{} },
		newList:  func() runtime.Object { return &corev1.NamespaceList{} },
		prepare:  prepareNamespace,
		decorate: decorateNamespace,
		fields: func(obj runtime.Object) fields.Set {
			return fields.Set{"status.phase": string(obj.(*corev1.Namespace).Status.Phase)}
		},
		columns: columns("Status"),
		cells:   func(obj runtime.Object) []any { return []any{string(obj.(*corev1.Namespace).Status.Phase)} },
	},
	{
		plural: "secrets", singular: "secret", kind: "Secret", namespaced: true,
		new:      func() runtime.Object { return &corev1.Secret{} },
		newList:  func() runtime.Object { return &corev1.SecretList{} },
		prepare:  prepareSecret,
		validate: validateSecret,
		fields: func(obj runtime.Object) fields.Set {
			return fields.Set{"type": string(obj.(*corev1.Secret).Type)}
		},
		columns: columns("Type", "Data:integer"),
		cells: func(obj runtime.Object) []any {
			s := obj.(*corev1.Secret)
			return []any{string(s.Type), int64(len(s.Data))}
		},
	},
	{
		plural: "configmaps", singular: "configmap", kind: "ConfigMap", short: []string{"cm"}, namespaced: true,
		new:      func() runtime.Object { return &corev1.ConfigMap{} },
		newList:  func() runtime.Object { return &corev1.ConfigMapList{} },
		validate: validateConfigMap,
		columns:  columns("Data:integer"),
		cells: func(obj runtime.Object) []any {
			c := obj.(*corev1.ConfigMap)
			return []any{int64(len(c.Data) + len(c.BinaryData))}
		},
	},
	{
		plural: "serviceaccounts", singular: "serviceaccount", kind: "ServiceAccount", short: []string{"sa"}, namespaced: true,
		new:     func() runtime.Object { return &corev1.ServiceAccount{} },
		newList: func() runtime.Object { return &corev1.ServiceAccountList{} },
		columns: columns("Secrets:integer"),
		cells:   func(obj runtime.Object) []any { return []any{int64(len(obj.(*corev1.ServiceAccount).Secrets))} },
	},
	{
		plural: "events", singular: "event", kind: "Event", short: []string{"ev"}, namespaced: true, ttl: eventSeconds,
		new:      func() runtime.Object { return &corev1.Event{} },
		newList:  func() runtime.Object { return &corev1.EventList{} },
		validate: validateEvent,
		fields:   eventFields,
		columns:  columns("Last Seen", "Type", "Reason", "Object", "Message"),
		cells: func(obj runtime.Object) []any {
			e := obj.(*corev1.Event)
			return []any{age(lastSeen(e)), e.Type, e.Reason,
				strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name, strings.TrimSpace(e.Message)}
		},
	},
}

func lastSeen(e *corev1.Event) metav1.Time {
	switch {
	case e.Series != nil:
		return metav1.Time{Time: e.Series.LastObservedTime.Time}
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp
	case !e.EventTime.IsZero():
		return metav1.Time{Time: e.EventTime.Time}
	default:
		return e.CreationTimestamp
	}
}

func eventFields(obj runtime.Object) fields.Set {
	e := obj.(*corev1.Event)
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	return fields.Set{
		"involvedObject.kind":            e.InvolvedObject.Kind,
		"involvedObject.namespace":       e.InvolvedObject.Namespace,
		"involvedObject.name":            e.InvolvedObject.Name,
		"involvedObject.uid":             string(e.InvolvedObject.UID),
		"involvedObject.apiVersion":      e.InvolvedObject.APIVersion,
		"involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
		"involvedObject.fieldPath":       e.InvolvedObject.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         source,
		"type":                           e.Type,
	}
}
