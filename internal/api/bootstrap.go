package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/skep-dev/skep/internal/api/admit"
	"github.com/skep-dev/skep/internal/api/crds"
)

// digestAnnotation tells at a restart that a definition is up to date.
const digestAnnotation = "skep.dev/crd-digest"

// poll asks often at first and then less so.
func poll(ctx context.Context, ready func(context.Context) (bool, error)) error {
	backoff := wait.Backoff{Duration: 5 * time.Millisecond, Factor: 1.3, Steps: 12, Cap: 100 * time.Millisecond}
	return backoff.DelayFunc().Until(ctx, true, true, ready)
}

// awaitHealthy returns when the server's post-start hooks have run.
func awaitHealthy(ctx context.Context, client rest.Interface, stopped <-chan struct{}) error {
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		select {
		case <-stopped:
			return false, errors.New("it stopped while starting")
		default:
		}
		code := 0
		client.Get().AbsPath("/readyz").Do(ctx).StatusCode(&code)
		return code == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("wait for API server to be ready: %w", err)
	}
	return nil
}

// installDefinitions brings Knative's definitions up to date and returns when
// they are served.
func installDefinitions(ctx context.Context, config *rest.Config) error {
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make API client: %w", err)
	}
	all, err := crds.All()
	if err != nil {
		return err
	}
	for _, crd := range all {
		if err := installDefinition(ctx, client, crd); err != nil {
			return fmt.Errorf("install CRD %s: %w", crd.Name, err)
		}
	}
	return awaitServed(ctx, client, all)
}

func installDefinition(ctx context.Context, client clientset.Interface, crd *apiextensionsv1.CustomResourceDefinition) error {
	raw, err := json.Marshal(crd)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	sum := sha256.Sum256(raw)
	digest := hex.EncodeToString(sum[:])
	metav1.SetMetaDataAnnotation(&crd.ObjectMeta, digestAnnotation, digest)

	definitions := client.ApiextensionsV1().CustomResourceDefinitions()
	old, err := definitions.Get(ctx, crd.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = definitions.Create(ctx, crd, metav1.CreateOptions{})
		return err
	case err != nil:
		return err
	case old.Annotations[digestAnnotation] == digest:
		return nil
	}
	crd.ResourceVersion = old.ResourceVersion
	_, err = definitions.Update(ctx, crd, metav1.UpdateOptions{})
	return err
}

// awaitServed returns when every definition is in discovery, which is where
// kubectl finds it, and its objects can be listed.
func awaitServed(ctx context.Context, client clientset.Interface, all []*apiextensionsv1.CustomResourceDefinition) error {
	missing := ""
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		known := map[string]bool{}
		for _, crd := range all {
			gv := metav1.GroupVersion{Group: crd.Spec.Group, Version: crd.Spec.Versions[0].Name}.String()
			list, err := client.Discovery().ServerResourcesForGroupVersion(gv)
			if err != nil {
				missing = gv
				return false, nil //nolint:nilerr // not served yet
			}
			for _, r := range list.APIResources {
				known[r.Name] = true
			}
			if missing = crd.Name; !known[crd.Spec.Names.Plural] {
				return false, nil
			}
			path := fmt.Sprintf("/apis/%s/%s", gv, crd.Spec.Names.Plural)
			if err := client.Discovery().RESTClient().Get().AbsPath(path).Param("limit", "1").Do(ctx).Error(); err != nil {
				return false, nil //nolint:nilerr // not served yet
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s to be served: %w", missing, err)
	}
	return nil
}

// makeNamespaces makes the namespaces there must be.
func makeNamespaces(ctx context.Context, config *rest.Config) error {
	client, err := coreClient(config)
	if err != nil {
		return err
	}
	for _, name := range admit.Immortal {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		err := client.Post().Resource("namespaces").Body(namespace).Do(ctx).Error()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
	}
	return nil
}

func coreClient(config *rest.Config) (*rest.RESTClient, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.APIPath = "/api"
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	return client, nil
}
