package install

import "testing"

func TestImagePackage(t *testing.T) {
	out := "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-40-cloud-amd64\n    linux-image-6.1.0-40-cloud-amd64-unsigned\n"
	if p, err := imagePackage(out); err != nil || p != "linux-image-6.1.0-40-cloud-amd64" {
		t.Errorf("package %q, %v", p, err)
	}
	for _, bad := range []string{"", "N: Unable to locate package", "  Depends: linux-image-x/../../y-cloud-amd64"} {
		if p, err := imagePackage(bad); err == nil {
			t.Errorf("%q gives %q", bad, p)
		}
	}
}
