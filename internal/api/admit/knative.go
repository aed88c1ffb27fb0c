package admit

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/warning"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/webhook/resourcesemantics"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/api/manifest"
)

// Knative runs Knative's own defaulting and validation on its kinds, as its
// webhooks do, and words refusals as they do.
type Knative struct {
	// WithConfig adds Knative's configuration to a context.
	WithConfig func(context.Context) context.Context
	// Annotations checks the annotations of revision templates; nil: nothing.
	Annotations func(map[string]string) error
}

var (
	_ admission.MutationInterface   = (*Knative)(nil)
	_ admission.ValidationInterface = (*Knative)(nil)
)

// insecureDefaults begins a warning that Knative gives on nearly every
// manifest, about Linux capabilities, root and seccomp in a shared kernel. A
// function has a sandbox around it, and no use for the warning.
const insecureDefaults = "Kubernetes default value is insecure"

const validationHook = "validation.webhook.serving.knative.dev"
const mutationHook = "webhook.serving.knative.dev"

// Handles says that creation and update are looked at.
func (k *Knative) Handles(operation admission.Operation) bool {
	return operation == admission.Create || operation == admission.Update
}

// blank returns an empty object of the kind written to, nil if the request is
// none of Knative's business. Status updates are not: Knative's defaulting and
// validation leave them alone.
func blank(a admission.Attributes) resourcesemantics.GenericCRD {
	if a.GetSubresource() != "" || a.GetKind().Group != serving.GroupName || a.GetKind().Version != "v1" {
		return nil
	}
	// What is being deleted must be able to lose its finalizers, whatever
	// is thought of its spec today.
	if accessor, err := meta.Accessor(a.GetObject()); err == nil && accessor.GetDeletionTimestamp() != nil {
		return nil
	}
	switch a.GetKind().Kind {
	case "Service":
		return &servingv1.Service{}
	case "Configuration":
		return &servingv1.Configuration{}
	case "Revision":
		return &servingv1.Revision{}
	case "Route":
		return &servingv1.Route{}
	default:
		return nil
	}
}

// Admit sets Knative's defaults, and who created and changed the object.
func (k *Knative) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	obj, ctx, err := k.open(ctx, a, mutationHook)
	if err != nil || obj == nil {
		return err
	}
	ctx = apis.WithUserInfo(ctx, userInfo(a.GetUserInfo()))
	obj.SetDefaults(ctx)
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("encode defaulted %s: %w", a.GetKind().Kind, err))
	}
	target, ok := a.GetObject().(*unstructured.Unstructured)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("a custom resource arrived as %T", a.GetObject()))
	}
	// What the type writes though nobody said anything.
	if status, ok := content["status"].(map[string]any); ok && len(status) == 0 {
		delete(content, "status")
	}
	target.Object = content
	target.SetGroupVersionKind(a.GetKind())
	return nil
}

// Validate refuses what Knative refuses, naming the field.
func (k *Knative) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	obj, inner, err := k.open(ctx, a, validationHook)
	if err != nil || obj == nil {
		return err
	}
	inner = apis.WithUserInfo(inner, userInfo(a.GetUserInfo()))
	result := obj.Validate(inner)
	if k.Annotations != nil {
		if err := k.Annotations(templateAnnotations(obj)); err != nil {
			return denied(validationHook, fmt.Errorf("validation failed: %w", err))
		}
	}
	if result == nil {
		return nil
	}
	if warnings := result.Filter(apis.WarningLevel); warnings != nil {
		for _, w := range warnings.WrappedErrors() {
			if !strings.HasPrefix(w.Error(), insecureDefaults) {
				warning.AddWarning(ctx, "", w.Error())
			}
		}
	}
	if refusal := result.Filter(apis.ErrorLevel); refusal != nil {
		return denied(validationHook, fmt.Errorf("validation failed: %w", refusal))
	}
	return nil
}

// templateAnnotations are those of a revision, or of the template of one.
func templateAnnotations(obj resourcesemantics.GenericCRD) map[string]string {
	switch o := obj.(type) {
	case *servingv1.Service:
		return o.Spec.Template.Annotations
	case *servingv1.Configuration:
		return o.Spec.Template.Annotations
	case *servingv1.Revision:
		return o.Annotations
	}
	return nil
}

// open decodes the new object, and prepares the context Knative's methods
// want: creation, or update with the old object, defaulted so that nothing is
// refused for defaults that came later.
func (k *Knative) open(ctx context.Context, a admission.Attributes, hook string) (resourcesemantics.GenericCRD, context.Context, error) {
	obj := blank(a)
	if obj == nil {
		return nil, ctx, nil
	}
	if err := decode(a.GetObject(), obj); err != nil {
		// The decoder does not say where a quantity is that is none.
		if raw, jsonErr := json.Marshal(a.GetObject()); jsonErr == nil {
			if field := manifest.BadQuantity(raw); field != "" {
				err = fmt.Errorf("%s: %w", field, err)
			}
		}
		return nil, ctx, denied(hook, fmt.Errorf("decoding request failed: cannot decode incoming new object: %w", err))
	}
	ctx = k.WithConfig(ctx)
	if a.IsDryRun() {
		ctx = apis.WithDryRun(ctx)
	}
	if a.GetOperation() == admission.Create {
		return obj, apis.WithinCreate(ctx), nil
	}
	old := blank(a)
	if err := decode(a.GetOldObject(), old); err != nil {
		return nil, ctx, denied(hook, fmt.Errorf("decoding request failed: cannot decode incoming old object: %w", err))
	}
	old.SetDefaults(ctx)
	return obj, apis.WithinUpdate(ctx, old), nil
}

// decode goes through JSON: the types have decoders of their own, and their
// error messages are those that Knative's users know.
func decode(from runtime.Object, into resourcesemantics.GenericCRD) error {
	raw, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

func denied(hook string, reason error) error {
	return apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q denied the request: %v", hook, reason))
}

func userInfo(info user.Info) *authenticationv1.UserInfo {
	if info == nil {
		return &authenticationv1.UserInfo{}
	}
	return &authenticationv1.UserInfo{Username: info.GetName(), UID: info.GetUID(), Groups: info.GetGroups()}
}
