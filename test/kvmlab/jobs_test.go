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
		"cgroup2":             {"cgroup", "runc", "gvisor"},
		"gvisor,qemu,cgroup2": {"gvisor", "qemu", "cgroup", "runc"},
	} {
		if got, err := jobNames(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("jobNames(%q) = %q, %v; want %q", list, got, err, want)
		}
	}
	if _, err := jobNames("qemu,xen"); err == nil || !strings.Contains(err.Error(), `"xen"`) {
		t.Errorf("an unknown job: %v", err)
	}
	for name, j := range packages {
		if j.pkg == "" || j.run == "" || j.short == "" {
			t.Errorf("job %s: %+v", name, j)
		}
	}
}
