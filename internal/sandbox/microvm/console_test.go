package microvm

import (
	"io"
	"strings"
	"testing"
)

func TestConsoleTail(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a line of a stack\n", 2*consoleLines)
	cases := []struct {
		name, text, tail string
		oom              bool
	}{
		{"last lines", "a\nb\nc\nd\ne\nf\n", "b | c | d | e | f", false},
		{"panic far above", "[1] Kernel panic - not syncing: Attempted to kill init!\n" + long, "[1] Kernel panic - not syncing: Attempted to kill init!", false},
		{"out of memory", "[1] Kernel panic - not syncing: System is deadlocked on memory\n" + long, "[1] Kernel panic - not syncing: System is deadlocked on memory", true},
		{"killed, no panic", "Out of memory: Killed process 7\n", "Out of memory: Killed process 7", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			con := readConsole(io.NopCloser(strings.NewReader(c.text)))
			<-con.Done()
			if got := con.Tail(); got != c.tail {
				t.Errorf("tail is %q, want %q", got, c.tail)
			}
			if got := con.OutOfMemory(); got != c.oom {
				t.Errorf("out of memory is %v, want %v", got, c.oom)
			}
		})
	}
}
