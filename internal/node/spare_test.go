package node

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestSpare(t *testing.T) {
	var s spare
	if c := s.take(); c != nil {
		t.Error("a connection from nothing")
	}
	mine, theirs := net.Pipe()
	if err := s.put(mine); err != nil {
		t.Fatal(err)
	}
	second, _ := net.Pipe()
	if err := s.put(second); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a second connection is not closed: %v", err)
	}
	if c := s.take(); c != mine {
		t.Errorf("took %v, want the first", c)
	}
	if c := s.take(); c != nil {
		t.Error("a connection was taken twice")
	}

	// Nobody wants it: the function sees its end.
	if err := s.put(mine); err != nil {
		t.Fatal(err)
	}
	if err := theirs.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read from a spare connection that nobody took: %v, want EOF", err)
	}
	if c := s.take(); c != nil {
		t.Error("a closed connection was taken")
	}
}
