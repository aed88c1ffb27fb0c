package pager_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// needHugePages has the kernel set huge pages aside while the test runs, if
// there are none. Tests that call it do not run in parallel.
func needHugePages(t *testing.T, n int) {
	t.Helper()
	const dir = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	testenv.File(t, dir+"nr_hugepages", "a kernel with huge pages (CONFIG_HUGETLBFS)")
	read := func(name string) int {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			t.Fatal(err)
		}
		v, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	enough := func() bool { return read("free_hugepages")-read("resv_hugepages") >= n }
	if enough() {
		return
	}
	testenv.Root(t)
	had := read("nr_hugepages")
	set := func(v int) {
		if err := os.WriteFile(dir+"nr_hugepages", []byte(strconv.Itoa(v)), 0o644); err != nil {
			t.Errorf("set huge pages aside: %v", err)
		}
	}
	t.Cleanup(func() { set(had) })
	set(had + n)
	if !enough() {
		// Memory may be in pieces.
		if err := os.WriteFile("/proc/sys/vm/compact_memory", []byte("1"), 0o200); err != nil {
			t.Log("compact memory: ", err)
		}
		set(had + n)
	}
	if !enough() {
		t.Fatalf("this test needs %d huge pages, and the kernel has not so much free memory in pieces of 2 MiB", n)
	}
}
