// Package admit holds the API server's admission: what a Kubernetes cluster
// would run as plugins and webhooks, in process.
package admit

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
)

// Immortal are the namespaces that are made at start and may not be deleted.
var Immortal = []string{metav1.NamespaceDefault, metav1.NamespaceSystem}

// Namespaces lets nothing be created in a namespace that does not exist or is
// being deleted, and keeps the immortal ones.
type Namespaces struct {
	// Get reads a namespace as it is now; NotFound where there is none.
	Get func(ctx context.Context, name string) (*corev1.Namespace, error)
}

var _ admission.MutationInterface = (*Namespaces)(nil)

// Handles says that creation and deletion are looked at.
func (n *Namespaces) Handles(operation admission.Operation) bool {
	return operation == admission.Create || operation == admission.Delete
}

// Admit refuses what may not be; it runs before defaulting, so that a missing
// namespace is what a user hears of first.
func (n *Namespaces) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	isNamespace := a.GetKind().GroupKind() == corev1.SchemeGroupVersion.WithKind("Namespace").GroupKind()
	switch {
	case a.GetOperation() == admission.Delete:
		if isNamespace && slices.Contains(Immortal, a.GetName()) {
			return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), fmt.Errorf("this namespace may not be deleted"))
		}
		return nil
	case isNamespace || a.GetNamespace() == "" || a.GetSubresource() != "":
		return nil
	}
	namespace, err := n.Get(ctx, a.GetNamespace())
	if apierrors.IsNotFound(err) {
		return apierrors.NewNotFound(corev1.Resource("namespaces"), a.GetNamespace())
	}
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read namespace %q: %w", a.GetNamespace(), err))
	}
	if namespace.DeletionTimestamp == nil {
		return nil
	}
	refusal := apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.GetNamespace()))
	refusal.ErrStatus.Details.Causes = append(refusal.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", a.GetNamespace()),
		Field:   "metadata.namespace",
	})
	return refusal
}
