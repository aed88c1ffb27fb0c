package image

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// A held image stays, also across a restart, when its name goes to another
// image and the garbage is collected; and goes once it is held no more.
func TestHold(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	add := func() *Image {
		t.Helper()
		n++
		img, err := s.Add(ctx, simpleImage(t, fmt.Sprint("image ", n)), "fn:latest")
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	old := add()
	if err := s.Hold(ctx, "default/fn-00001", old.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "fn:latest"); !errors.Is(err, ErrInUse) {
		t.Errorf("removing the only name of a held image: %v", err)
	}
	if renamed := add(); renamed.Digest == old.Digest {
		t.Fatal("the test's images are the same")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.GC(ctx, Policy{MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(old.Digest); err != nil {
		t.Errorf("the held image is gone: %v", err)
	}
	if _, err := s.Get("fn:latest"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the other image should have been collected: %v", err)
	}
	if n := len(s.List()); n != 0 {
		t.Errorf("%d images are listed; holds are not images", n)
	}
	for range 2 {
		if err := s.Unhold(ctx, "default/fn-00001"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.GC(ctx, Policy{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(old.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("the image is no longer held, yet there: %v", err)
	}
}
