package lab

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Results reads what a test program says with -test.v, and passes it on.
type Results struct {
	out  io.Writer
	line []byte
	of   map[string]string // "PASS", "SKIP" or "FAIL", by the test's name
}

// NewResults passes on to out what is written to it.
func NewResults(out io.Writer) *Results { return &Results{out: out, of: map[string]string{}} }

// maxLine is how much of a line is looked at, bytes.
const maxLine = 1 << 10

// Write takes part of a test program's output.
func (r *Results) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte("\n"))
		r.line = append(r.line, part[:min(len(part), maxLine-len(r.line))]...)
		if whole {
			r.take(string(r.line))
			r.line = r.line[:0]
		}
		rest = after
	}
	return r.out.Write(b)
}

// take takes a line such as "    --- PASS: TestA/One (0.00s)". A program may
// have printed something before, and not ended its line.
func (r *Results) take(line string) {
	_, line, _ = strings.Cut(line, "--- ")
	if result, rest, ok := strings.Cut(line, ": "); ok && slices.Contains([]string{"PASS", "SKIP", "FAIL"}, result) {
		name, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		r.of[name] = result
	}
}

// Check says which of the tests that should have passed did not, be it that they
// were skipped, or that there are none of that name. Without names there must
// be one that did.
func (r *Results) Check(want []string) error {
	var missing []string
	for _, name := range want {
		if result := r.of[name]; result != "PASS" {
			missing = append(missing, fmt.Sprintf("%s (%s)", name, cmp.Or(result, "not run")))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("did not pass: %s", strings.Join(missing, ", "))
	}
	if passed, _ := r.count(); passed == 0 {
		return fmt.Errorf("no test has passed: of that name there is none, or they were skipped")
	}
	return nil
}

// String says how many tests passed, and which were skipped. Those that have
// subtests do not count.
func (r *Results) String() string {
	passed, skipped := r.count()
	s := fmt.Sprintf("%d tests passed", passed)
	if len(skipped) > 0 {
		s += fmt.Sprintf(", %d were skipped: %s", len(skipped), strings.Join(skipped, ", "))
	}
	return s
}

func (r *Results) count() (passed int, skipped []string) {
	parents := map[string]bool{}
	for name := range r.of {
		for i, c := range name {
			if c == '/' {
				parents[name[:i]] = true
			}
		}
	}
	for name, result := range r.of {
		switch {
		case parents[name]:
		case result == "PASS":
			passed++
		case result == "SKIP":
			skipped = append(skipped, name)
		}
	}
	slices.Sort(skipped)
	return passed, skipped
}
