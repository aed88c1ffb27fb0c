package core

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Largest contents of a secret or configmap, and of an event's message, in
// bytes; Kubernetes allows as much.
const (
	maxDataBytes    = 1 << 20
	maxMessageBytes = 16 << 10
)

func prepareNamespace(obj, old runtime.Object) {
	ns := obj.(*corev1.Namespace)
	ns.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	ns.Spec = corev1.NamespaceSpec{}
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	if ns.Name != "" {
		ns.Labels[corev1.LabelMetadataName] = ns.Name
	}
	if ns.DeletionTimestamp == nil && !slices.Contains(ns.Finalizers, Finalizer) {
		ns.Finalizers = append(ns.Finalizers, Finalizer)
	}
}

func decorateNamespace(obj runtime.Object) {
	switch o := obj.(type) {
	case *corev1.Namespace:
		if o.DeletionTimestamp != nil {
			o.Status.Phase = corev1.NamespaceTerminating
		}
	case *corev1.NamespaceList:
		for i := range o.Items {
			decorateNamespace(&o.Items[i])
		}
	}
}

func prepareSecret(obj, _ runtime.Object) {
	secret := obj.(*corev1.Secret)
	if secret.Type == "" {
		secret.Type = corev1.SecretTypeOpaque
	}
	if len(secret.StringData) > 0 && secret.Data == nil {
		secret.Data = make(map[string][]byte, len(secret.StringData))
	}
	for key, value := range secret.StringData {
		secret.Data[key] = []byte(value)
	}
	secret.StringData = nil
}

// What a secret of a type must hold.
var secretKeys = map[corev1.SecretType][]string{
	corev1.SecretTypeDockerConfigJson: {corev1.DockerConfigJsonKey},
	corev1.SecretTypeDockercfg:        {corev1.DockerConfigKey},
	corev1.SecretTypeSSHAuth:          {corev1.SSHAuthPrivateKey},
	corev1.SecretTypeTLS:              {corev1.TLSCertKey, corev1.TLSPrivateKeyKey},
}

func validateSecret(obj, old runtime.Object) field.ErrorList {
	secret := obj.(*corev1.Secret)
	data := field.NewPath("data")
	var errs field.ErrorList
	total := 0
	for key, value := range secret.Data {
		errs = append(errs, validateKey(data, key)...)
		total += len(value)
	}
	errs = append(errs, validateTotal(data, total)...)
	for _, key := range secretKeys[secret.Type] {
		value, ok := secret.Data[key]
		switch {
		case !ok:
			errs = append(errs, field.Required(data.Key(key), fmt.Sprintf("a secret of type %s needs it", secret.Type)))
		case key == corev1.DockerConfigJsonKey || key == corev1.DockerConfigKey:
			if !json.Valid(value) {
				// Never the value itself: it is secret.
				errs = append(errs, field.Invalid(data.Key(key), "<secret contents redacted>", "not valid JSON"))
			}
		}
	}
	if old == nil {
		return errs
	}
	before := old.(*corev1.Secret)
	if before.Type != secret.Type {
		errs = append(errs, field.Invalid(field.NewPath("type"), secret.Type, "field is immutable"))
	}
	same := equality.Semantic.DeepEqual(before.Data, secret.Data)
	return append(errs, validateImmutable(before.Immutable, secret.Immutable, same)...)
}

func validateConfigMap(obj, old runtime.Object) field.ErrorList {
	config := obj.(*corev1.ConfigMap)
	data, binary := field.NewPath("data"), field.NewPath("binaryData")
	var errs field.ErrorList
	total := 0
	for key, value := range config.Data {
		errs = append(errs, validateKey(data, key)...)
		if _, twice := config.BinaryData[key]; twice {
			errs = append(errs, field.Invalid(data.Key(key), key, "duplicate of key present in binaryData"))
		}
		total += len(value)
	}
	for key, value := range config.BinaryData {
		errs = append(errs, validateKey(binary, key)...)
		total += len(value)
	}
	errs = append(errs, validateTotal(data, total)...)
	if old == nil {
		return errs
	}
	before := old.(*corev1.ConfigMap)
	same := maps.Equal(before.Data, config.Data) && equality.Semantic.DeepEqual(before.BinaryData, config.BinaryData)
	return append(errs, validateImmutable(before.Immutable, config.Immutable, same)...)
}

func validateEvent(obj, _ runtime.Object) field.ErrorList {
	event := obj.(*corev1.Event)
	var errs field.ErrorList
	if len(event.Message) > maxMessageBytes {
		errs = append(errs, field.TooLong(field.NewPath("message"), "", maxMessageBytes))
	}
	// Events on what has no namespace live in "default".
	about := event.InvolvedObject.Namespace
	if about != "" && about != event.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), about, "does not match event.namespace"))
	}
	return errs
}

func validateKey(path *field.Path, key string) field.ErrorList {
	var errs field.ErrorList
	for _, message := range validation.IsConfigMapKey(key) {
		errs = append(errs, field.Invalid(path.Key(key), key, message))
	}
	return errs
}

func validateTotal(path *field.Path, bytes int) field.ErrorList {
	if bytes > maxDataBytes {
		return field.ErrorList{field.TooLong(path, "", maxDataBytes)}
	}
	return nil
}

func validateImmutable(before, after *bool, same bool) field.ErrorList {
	if before == nil || !*before {
		return nil
	}
	path := field.NewPath("immutable")
	var errs field.ErrorList
	if after == nil || !*after {
		errs = append(errs, field.Forbidden(path, "field is immutable when `immutable` is set"))
	}
	if !same {
		errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
	}
	return errs
}
