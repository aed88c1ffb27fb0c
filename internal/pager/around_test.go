package pager_test

import (
	"strconv"
	"testing"

	"github.com/skep-dev/skep/internal/pager"
)

// holed is a pattern with a hole of zeros.
type holed struct {
	pattern
	from, to int // pages
}

func (h *holed) Zero(off, n int64) bool {
	return off >= int64(h.from*h.pageSize) && off+n <= int64(h.to*h.pageSize)
}

func (h *holed) ReadAt(b []byte, off int64) (int, error) {
	if h.Zero(off, int64(len(b))) {
		clear(b)
		return len(b), nil
	}
	return h.pattern.ReadAt(b, off)
}

// Of a hole, few pages are asked for, whatever the order; none of it covers
// what is no hole, or was written to.
func TestZeroAround(t *testing.T) {
	const pages, from, to = 2000, 100, 1900
	backwards := make([]int, pages)
	for i := range backwards {
		backwards[i] = pages - 1 - i
	}
	for name, order := range map[string][]int{"forwards": sequence(pages), "backwards": backwards} {
		for _, on := range []bool{true, false} {
			t.Run(name+strconv.FormatBool(on), func(t *testing.T) {
				t.Parallel()
				c := startChild(t, childConfig{Kind: "anon", Pages: pages})
				conf := c.config(&holed{pattern{pages: pages, pageSize: pager.PageSize}, from, to})
				conf.ZeroAround, conf.Record = on, true
				s, wait := c.serve(deadline(t), conf)
				want := func(p uint64) uint64 {
					switch {
					case p == 150:
						return 42
					case p >= from && p < to:
						return 0
					}
					return value(p)
				}
				c.send("write 150 42")
				c.expect("done")
				c.look([]int{140, 160}, want)
				if rec := s.StopRecording(); len(rec.Pages) != 3 || s.Stats().Around != 0 {
					t.Errorf("the recording has pages %v, %+v", rec.Pages, s.Stats())
				}
				c.look(order, want)
				st := s.Stats()
				if st.Faults+st.Around != pages || !on && st.Around != 0 || on && st.Faults > pages-(to-from)+60 {
					t.Errorf("with %v: stats %+v", on, st)
				}
				_ = c.in.Close()
				if err := wait(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
