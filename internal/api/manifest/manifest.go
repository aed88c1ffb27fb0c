// Package manifest reads Knative Services as users write them: YAML or JSON,
// several to a file, checked as strictly as the API server checks them.
package manifest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	// MaxBytes is the largest manifest taken, in bytes.
	MaxBytes = 1 << 20
	// MaxDocuments is the largest number of documents in one manifest.
	MaxDocuments = 100
)

var serviceType = metav1.TypeMeta{APIVersion: servingv1.SchemeGroupVersion.String(), Kind: "Service"}

// Decode reads all Knative Services in data, in order, with Knative's
// defaults set and checked by Knative's validation. The error names the
// document and the field; it is for the author of the manifest. Documents
// with nothing in them are passed over, but there must be one Service.
func Decode(data []byte) ([]*servingv1.Service, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("manifest is larger than %d bytes", MaxBytes)
	}
	var services []*servingv1.Service
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		if number > MaxDocuments {
			return nil, fmt.Errorf("manifest has more than %d documents", MaxDocuments)
		}
		service, err := decodeOne(document)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		if service != nil {
			services = append(services, service)
		}
	}
	if len(services) == 0 {
		return nil, errors.New("manifest holds no Knative Service (kind: Service, apiVersion: serving.knative.dev/v1)")
	}
	return services, nil
}

func decodeOne(document []byte) (*servingv1.Service, error) {
	if !utf8.Valid(document) {
		return nil, errors.New("not text in UTF-8")
	}
	// Strict: a key given twice is a mistake, not a choice.
	asJSON, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, fmt.Errorf("not valid YAML or JSON: %w", err)
	}
	if trimmed := bytes.TrimSpace(asJSON); len(trimmed) == 0 || string(trimmed) == "null" {
		return nil, nil
	}
	if len(asJSON) > 4*MaxBytes {
		return nil, errors.New("YAML aliases make the document too large")
	}
	var kind metav1.TypeMeta
	if err := json.Unmarshal(asJSON, &kind); err != nil {
		return nil, fmt.Errorf("not a Kubernetes object: %w", err)
	}
	if kind != serviceType {
		return nil, fmt.Errorf("apiVersion %q, kind %q: want apiVersion: %s, kind: %s",
			kind.APIVersion, kind.Kind, serviceType.APIVersion, serviceType.Kind)
	}
	service := &servingv1.Service{}
	strict, err := kjson.UnmarshalStrict(asJSON, service)
	if err != nil {
		if field := BadQuantity(asJSON); field != "" {
			return nil, fmt.Errorf("%s is not a quantity such as 256Mi, 500m or 2", field)
		}
		return nil, fmt.Errorf("service does not fit its type: %w", err)
	}
	name := service.Name
	if name == "" {
		name = service.GenerateName
	}
	if len(strict) > 0 {
		return nil, fmt.Errorf("service %q: %w", name, errors.Join(strict...))
	}
	if name == "" {
		return nil, errors.New("service: metadata.name is missing")
	}
	ctx := apis.WithinCreate(WithConfig(context.Background()))
	service.SetDefaults(ctx)
	if err := service.Validate(ctx).Filter(apis.ErrorLevel); err != nil {
		return nil, fmt.Errorf("service %q: %w", name, err)
	}
	return service, nil
}

// BadQuantity names the first amount of a resource that is none, because the
// decoder's own message does not say where it is.
func BadQuantity(asJSON []byte) string {
	var s struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Resources map[string]map[string]any `json:"resources"`
					} `json:"containers"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(asJSON, &s); err != nil {
		return ""
	}
	for i, c := range s.Spec.Template.Spec.Containers {
		for _, kind := range []string{"limits", "requests"} {
			for _, name := range slices.Sorted(maps.Keys(c.Resources[kind])) {
				v := c.Resources[kind][name]
				if text, ok := v.(string); ok {
					if _, err := resource.ParseQuantity(text); err != nil {
						return fmt.Sprintf("spec.template.spec.containers[%d].resources.%s.%s: %.40q", i, kind, name, text)
					}
				}
			}
		}
	}
	return ""
}
