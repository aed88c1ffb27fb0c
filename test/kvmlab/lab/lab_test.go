package lab_test

import (
	"testing"

	"github.com/skep-dev/skep/test/kvmlab/lab"
)

func TestMark(t *testing.T) {
	for _, want := range []lab.Mark{
		{Kind: lab.MarkUp}, {Kind: lab.MarkExit, Job: "qemu driver", Code: 2, Note: "2 tests passed"}, {Kind: lab.MarkEnd},
	} {
		line := want.Line("ab12")
		for _, s := range []string{line, line + "\r\n", "[    1.23] " + line} {
			if got, ok := lab.ParseMark(s, "ab12"); !ok || got != want {
				t.Errorf("ParseMark(%q) = %+v, %v", s, got, ok)
			}
		}
		if _, ok := lab.ParseMark(line, "cd34"); ok {
			t.Error("another machine's mark is taken for our own")
		}
	}
	for _, s := range []string{"", "ok", "kvmlab-ab12 ", "kvmlab-ab12 exit 1", "kvmlab-ab12 exit \"x 1", "kvmlab-ab12 exit \"x\" 1"} {
		if m, ok := lab.ParseMark(s, "ab12"); ok {
			t.Errorf("ParseMark(%q) = %+v", s, m)
		}
	}
}
