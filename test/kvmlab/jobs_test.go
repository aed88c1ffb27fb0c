package main

import (
	"slices"
	"strings"
	"testing"
)

func TestJobNames(t *testing.T) {
	for list, want := range map[string][]string{
		"":                    nil,
		"qemu":                {"qemu"},
		"cgroup2":             {"gvisor", "runc", "cgroup"},
		"gvisor,qemu,cgroup2": {"gvisor", "qemu", "runc", "cgroup"},
	} {
		if got, err := jobNames(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("jobNames(%q) = %q, %v; want %q", list, got, err, want)
		}
	}
	if _, err := jobNames("qemu,xen"); err == nil || !strings.Contains(err.Error(), `"xen"`) {
		t.Errorf("an unknown job: %v", err)
	}
	for name, j := range packages {
		if j.pkg == "" || len(j.short) == 0 {
			t.Errorf("job %s: %+v", name, j)
		}
		for _, p := range j.short {
			if (p.name == "") != (len(j.short) == 1) {
				t.Errorf("job %s: part %q of %d", name, p.name, len(j.short))
			}
		}
	}
}

func TestPattern(t *testing.T) {
	for want, in := range map[string]tests{
		".":                          nil,
		"^TestA$":                    {"TestA"},
		`^TestA$/^B$/^c\+d$|^TestE$`: {"TestA/B/c+d", "TestE"},
	} {
		if got := in.pattern(); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
