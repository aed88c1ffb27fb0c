package logs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func read(t *testing.T, s *Store, q Query) []Line {
	t.Helper()
	var got []Line
	if err := s.Read(context.Background(), q, func(l Line) error { got = append(got, l); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func create(t *testing.T, s *Store, k Key) *Log {
	t.Helper()
	l, err := s.Create(k)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestStoredLines(t *testing.T) {
	s := New(t.TempDir())
	l := create(t, s, Key{"ns", "rev", "i1"})
	fmt.Fprintln(l.Stdout, "one")
	fmt.Fprint(l.Stderr, "a line without an end")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got := read(t, s, Query{Namespace: "ns", Revisions: []string{"rev", "none"}, Tail: -1})
	if len(got) != 2 {
		t.Fatalf("got %d lines: %+v", len(got), got)
	}
	streams := map[string]string{}
	for _, g := range got {
		streams[g.Stream] = g.Text
		if g.Instance != "i1" || g.At.IsZero() {
			t.Errorf("line %+v lacks its instance or time", g)
		}
	}
	if streams["stdout"] != "one" || streams["stderr"] != "a line without an end" {
		t.Errorf("lines by stream: %v", streams)
	}
	if n := len(read(t, s, Query{Namespace: "ns", Revisions: []string{"rev"}, Tail: 1})); n != 1 {
		t.Errorf("tail 1 gave %d lines", n)
	}
	if n := len(read(t, s, Query{Namespace: "other", Revisions: []string{"rev"}, Tail: -1})); n != 0 {
		t.Errorf("another namespace sees %d lines", n)
	}
}

func TestLongLinesAreSplitAndNothingIsLost(t *testing.T) {
	s := New(t.TempDir())
	l := create(t, s, Key{"ns", "rev", "i"})
	long := strings.Repeat("x", 3*maxLine+5)
	fmt.Fprintln(l.Stdout, long)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var all string
	for _, g := range read(t, s, Query{Namespace: "ns", Revisions: []string{"rev"}, Tail: -1}) {
		all += g.Text
	}
	if all != long {
		t.Errorf("%d bytes came back of %d", len(all), len(long))
	}
}

func TestFollow(t *testing.T) {
	s := New(t.TempDir())
	l := create(t, s, Key{"ns", "rev", "i"})
	defer l.Close()
	fmt.Fprintln(l.Stdout, "before")
	for len(read(t, s, Query{Namespace: "ns", Revisions: []string{"rev"}, Tail: -1})) == 0 {
		time.Sleep(time.Millisecond) // until the pipe's reader has stored it
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var got []string
	stop := errors.New("enough")
	err := s.Read(ctx, Query{Namespace: "ns", Revisions: []string{"rev"}, Follow: true, Tail: -1}, func(x Line) error {
		got = append(got, x.Text)
		switch x.Text {
		case "before":
			fmt.Fprintln(l.Stdout, "after")
		case "after":
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || len(got) != 2 {
		t.Errorf("followed %q, %v", got, err)
	}
}

func TestOldLogsAreDropped(t *testing.T) {
	s := New(t.TempDir())
	for i := range keepOld + 5 {
		l := create(t, s, Key{"ns", "rev", fmt.Sprintf("i%02d", i)})
		fmt.Fprintln(l.Stdout, "hello")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	got := read(t, s, Query{Namespace: "ns", Revisions: []string{"rev"}, Tail: -1})
	if len(got) != keepOld+1 { // the newest came after the last clean-up
		t.Errorf("%d logs kept", len(got))
	}
	if err := s.Remove("ns", "rev"); err != nil {
		t.Fatal(err)
	}
	if n := len(read(t, s, Query{Namespace: "ns", Revisions: []string{"rev"}, Tail: -1})); n != 0 {
		t.Errorf("%d lines after Remove", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("2026-01-02T15:04:05.9Z stdout F text with spaces")
	f.Add("nonsense")
	f.Fuzz(func(t *testing.T, s string) {
		if l, ok := parse(s); ok && l.At.IsZero() && !strings.HasPrefix(s, "0001-01-01T00:00:00") {
			t.Errorf("parse(%q) gave no time", s)
		}
	})
}
