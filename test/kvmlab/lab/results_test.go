package lab_test

import (
	"strings"
	"testing"
	"testing/iotest"

	"github.com/skep-dev/skep/test/kvmlab/lab"
)

const said = `=== RUN   TestA
=== RUN   TestA/One
=== RUN   TestA/map+hint
    a_test.go:7: said --- nothing: of it
--- PASS: TestA (1.02s)
    --- PASS: TestA/One (1.00s)
    --- PASS: TestA/map+hint (0.02s)
half a line--- SKIP: TestB (0.00s)
    b_test.go:3: no such tool
PASS
`

func TestResults(t *testing.T) {
	var out strings.Builder
	r := lab.NewResults(&out)
	in := iotest.OneByteReader(strings.NewReader(said)) // lines come in parts
	b := make([]byte, 100)
	for {
		n, err := in.Read(b)
		if _, werr := r.Write(b[:n]); werr != nil {
			t.Fatal(werr)
		}
		if err != nil {
			break
		}
	}
	if out.String() != said {
		t.Errorf("passed on: %q", out.String())
	}
	if got, want := r.String(), "2 tests passed, 1 were skipped: TestB"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := r.Check([]string{"TestA", "TestA/One", "TestA/map+hint"}); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ name, want string }{
		{"TestB", "TestB (SKIP)"}, {"TestA/Two", "TestA/Two (not run)"}, {"TestA/O", "TestA/O (not run)"},
	} {
		if err := r.Check([]string{"TestA", c.name}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Check(%s): %v", c.name, err)
		}
	}
	// Nothing, or only skipped: "PASS" says nothing then.
	for _, s := range []string{"testing: warning: no tests to run\nPASS\n", "--- SKIP: TestB (0.00s)\nPASS\n", ""} {
		r := lab.NewResults(&out)
		_, _ = r.Write([]byte(s))
		if err := r.Check(nil); err == nil {
			t.Errorf("of %q it is said that a test has passed", s)
		}
	}
	// A line without an end is bounded.
	r = lab.NewResults(&out)
	for range 10 {
		_, _ = r.Write([]byte(strings.Repeat("x", 1<<10)))
	}
	_, _ = r.Write([]byte("\n--- PASS: TestC (0.00s)\n"))
	if err := r.Check([]string{"TestC"}); err != nil {
		t.Error(err)
	}
}
