package core

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	openapi "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const apiPackage = "k8s.io/api/core/v1"

// Types that server-side apply replaces as a whole (their Go comments say
// +structType=atomic, which cannot be seen at run time).
var atomicTypes = map[string]bool{"ObjectReference": true, "LocalObjectReference": true}

type modelNamer interface{ OpenAPIModelName() string }

type documented interface{ SwaggerDoc() map[string]string }

// Definitions describes the group's types in OpenAPI; those of meta/v1, which
// they refer to, are not included. Kubernetes generates these by the
// thousand; for five kinds they are read from the Go types.
func Definitions(ref openapi.ReferenceCallback) map[string]openapi.OpenAPIDefinition {
	b := builder{ref: ref, all: map[string]openapi.OpenAPIDefinition{}}
	for _, r := range resources {
		for _, obj := range []runtime.Object{r.new(), r.newList()} {
			b.structure(reflect.TypeOf(obj).Elem())
		}
	}
	return b.all
}

type builder struct {
	ref openapi.ReferenceCallback
	all map[string]openapi.OpenAPIDefinition
}

// structure defines a struct type and all of this package that it leads to,
// and returns its name.
func (b builder) structure(t reflect.Type) string {
	zero := reflect.Zero(t).Interface()
	name := zero.(modelNamer).OpenAPIModelName()
	if _, done := b.all[name]; done || t.PkgPath() != apiPackage {
		return name
	}
	b.all[name] = openapi.OpenAPIDefinition{} // types may refer to themselves

	docs := map[string]string{}
	if d, ok := zero.(documented); ok {
		docs = d.SwaggerDoc()
	}
	s := spec.Schema{SchemaProps: spec.SchemaProps{
		Type: []string{"object"}, Description: docs[""], Properties: map[string]spec.Schema{},
	}}
	if atomicTypes[t.Name()] {
		s.AddExtension("x-kubernetes-map-type", "atomic")
	}
	var dependencies []string
	b.fields(t, docs, &s, &dependencies)
	b.all[name] = openapi.OpenAPIDefinition{Schema: s, Dependencies: dependencies}
	return name
}

func (b builder) fields(t reflect.Type, docs map[string]string, s *spec.Schema, dependencies *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
			continue
		case name == "": // inlined
			inner := map[string]string{}
			if d, ok := reflect.Zero(f.Type).Interface().(documented); ok {
				inner = d.SwaggerDoc()
			}
			b.fields(f.Type, inner, s, dependencies)
			continue
		}
		property := b.value(f.Type, dependencies)
		property.Description = docs[name]
		if property.Type.Contains("array") {
			listSemantics(&property, f.Tag)
		}
		s.Properties[name] = property
		if !strings.Contains(options, "omitempty") && f.Type.Kind() != reflect.Pointer {
			s.Required = append(s.Required, name)
		}
	}
}

// listSemantics says how patches and server-side apply merge a list.
func listSemantics(property *spec.Schema, tag reflect.StructTag) {
	key := tag.Get("patchMergeKey")
	if key == "" {
		property.AddExtension("x-kubernetes-list-type", "atomic")
		return
	}
	property.AddExtension("x-kubernetes-list-type", "map")
	property.AddExtension("x-kubernetes-list-map-keys", []any{key})
	property.AddExtension("x-kubernetes-patch-merge-key", key)
	property.AddExtension("x-kubernetes-patch-strategy", tag.Get("patchStrategy"))
}

func (b builder) value(t reflect.Type, dependencies *[]string) spec.Schema {
	simple := func(kind, format string) spec.Schema {
		return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{kind}, Format: format}}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return b.value(t.Elem(), dependencies)
	case reflect.Struct:
		name := b.structure(t)
		*dependencies = append(*dependencies, name)
		return spec.Schema{SchemaProps: spec.SchemaProps{Ref: b.ref(name)}}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return simple("string", "byte")
		}
		s := simple("array", "")
		items := b.value(t.Elem(), dependencies)
		s.Items = &spec.SchemaOrArray{Schema: &items}
		return s
	case reflect.Map:
		s := simple("object", "")
		values := b.value(t.Elem(), dependencies)
		s.AdditionalProperties = &spec.SchemaOrBool{Allows: true, Schema: &values}
		return s
	case reflect.Bool:
		return simple("boolean", "")
	case reflect.Int32:
		return simple("integer", "int32")
	case reflect.Int, reflect.Int64:
		return simple("integer", "int64")
	default:
		return simple("string", "")
	}
}
