package core

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
)

// Prefix is where the group is served.
const Prefix = genericapiserver.DefaultLegacyAPIPrefix

// Codec encodes the group's objects for storage.
func Codec() runtime.Codec { return codecs.LegacyCodec(corev1.SchemeGroupVersion) }

// Group is core/v1, ready to be installed, and its storage.
type Group struct {
	Info       genericapiserver.APIGroupInfo
	namespaces *store
}

// New makes the group on the storage that options leads to.
func New(options generic.RESTOptionsGetter) (*Group, error) {
	group := &Group{Info: genericapiserver.NewDefaultAPIGroupInfo(corev1.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)}
	served := map[string]rest.Storage{}
	for _, r := range resources {
		s, err := newStore(r, options)
		if err != nil {
			return nil, fmt.Errorf("core storage for %s: %w", r.plural, err)
		}
		served[r.plural] = s
		if r.kind == "Namespace" {
			group.namespaces = s
		}
	}
	group.Info.VersionedResourcesStorageMap[corev1.SchemeGroupVersion.Version] = served
	return group, nil
}

// Namespace reads a namespace from storage; the error is an API status
// (NotFound) where there is none.
func (g *Group) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	obj, err := g.namespaces.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return nil, fmt.Errorf("storage of namespaces returned a %T", obj)
	}
	return ns, nil
}

type store struct {
	*registry.Store
	short []string
}

var _ rest.ShortNamesProvider = (*store)(nil)

// ShortNames are what kubectl also takes.
func (s *store) ShortNames() []string { return s.short }

func newStore(r resource, options generic.RESTOptionsGetter) (*store, error) {
	group := corev1.Resource(r.plural)
	behaviour := &strategy{ObjectTyper: scheme, NameGenerator: names.SimpleNameGenerator, resource: r}
	s := &registry.Store{
		NewFunc:                   r.new,
		NewListFunc:               r.newList,
		DefaultQualifiedResource:  group,
		SingularQualifiedResource: corev1.Resource(r.singular),
		CreateStrategy:            behaviour,
		UpdateStrategy:            behaviour,
		DeleteStrategy:            behaviour,
		Decorator:                 r.decorate,
		TableConvertor:            table{r},
		PredicateFunc: func(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
			return storage.SelectionPredicate{Label: label, Field: field, GetAttrs: r.attrs}
		},
	}
	if r.ttl > 0 {
		s.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return r.ttl, nil }
	}
	if err := s.CompleteWithOptions(&generic.StoreOptions{RESTOptions: options, AttrFunc: r.attrs}); err != nil {
		return nil, err
	}
	return &store{Store: s, short: r.short}, nil
}

func (r resource) attrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil, err
	}
	return labels.Set(accessor.GetLabels()), selectable(r, obj, accessor), nil
}

// strategy is how the API machinery asks a resource's rules.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	resource
}

var (
	_ rest.RESTCreateStrategy              = (*strategy)(nil)
	_ rest.RESTUpdateStrategy              = (*strategy)(nil)
	_ rest.RESTDeleteStrategy              = (*strategy)(nil)
	_ rest.GarbageCollectionDeleteStrategy = (*strategy)(nil)
)

func (s *strategy) NamespaceScoped() bool                         { return s.namespaced }
func (s *strategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (s *strategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (s *strategy) Canonicalize(runtime.Object)                   {}

func (s *strategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	return rest.DeleteDependents
}

func (s *strategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	if s.prepare != nil {
		s.prepare(obj, nil)
	}
}

func (s *strategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	if s.prepare != nil {
		s.prepare(obj, old)
	}
}

func (s *strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return field.ErrorList{field.InternalError(field.NewPath("metadata"), err)}
	}
	nameRule := validation.NameIsDNSSubdomain
	if s.kind == "Namespace" {
		nameRule = validation.NameIsDNSLabel
	}
	errs := validation.ValidateObjectMetaAccessor(accessor, s.namespaced, nameRule, field.NewPath("metadata"))
	if s.validate != nil {
		errs = append(errs, s.validate(obj, nil)...)
	}
	return errs
}

func (s *strategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	after, err := meta.Accessor(obj)
	if err != nil {
		return field.ErrorList{field.InternalError(field.NewPath("metadata"), err)}
	}
	before, err := meta.Accessor(old)
	if err != nil {
		return field.ErrorList{field.InternalError(field.NewPath("metadata"), err)}
	}
	errs := validation.ValidateObjectMetaAccessorUpdate(after, before, field.NewPath("metadata"))
	if s.validate != nil {
		errs = append(errs, s.validate(obj, old)...)
	}
	return errs
}

func (s *strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }

func (s *strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
