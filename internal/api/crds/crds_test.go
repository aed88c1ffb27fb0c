package crds

import (
	"slices"
	"testing"
)

func TestAll(t *testing.T) {
	t.Parallel()
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, crd := range all {
		kinds = append(kinds, crd.Spec.Names.Kind)
		if crd.Spec.Group != "serving.knative.dev" || crd.Spec.Conversion != nil || len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != "v1" {
			t.Errorf("%s is not what is expected", crd.Name)
		}
	}
	if !slices.Equal(kinds, []string{"Configuration", "Revision", "Route", "Service"}) {
		t.Errorf("there are %v", kinds)
	}
}
