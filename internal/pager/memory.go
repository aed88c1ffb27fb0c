package pager

import (
	"sort"
	"sync"
)

// memory is what the server knows about the served pages.
//
// Its lock keeps removals and installations in order. Whoever takes messages
// off the descriptor holds it for writing until removals are noted; whoever
// installs holds it for reading from the look at the notes until the page is
// in. So an installation is either before the message was taken, and then the
// kernel refuses it or the removal itself wipes it out, or it sees the note.
type memory struct {
	mu        sync.RWMutex
	pageSize  uint64
	byAddress []*area
	byOffset  []*area
	anyGone   bool

	open      bool // StopRecording was not called
	record    bool
	order     []uint64
	remaining int
}

// area is a region with a bit for each page.
type area struct {
	Region
	pages   uint64
	touched bitmap // seen in a demand fault
	wanted  bitmap // in the working set
	gone    bitmap // removed by the process: zeros from now on
}

type bitmap []uint64

func (b bitmap) has(i uint64) bool { return b != nil && b[i/64]&(1<<(i%64)) != 0 }

func (b *bitmap) set(i, pages uint64) {
	if *b == nil {
		*b = make(bitmap, (pages+63)/64)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

// setRange sets the bits from first up to end, whole words at a time.
func (b *bitmap) setRange(first, end, pages uint64) {
	for i := first; i < end; {
		if i%64 == 0 && end-i >= 64 && *b != nil {
			(*b)[i/64] = ^uint64(0)
			i += 64
			continue
		}
		b.set(i, pages)
		i++
	}
}

func newMemory(regions []Region, pageSize uint64, ws *WorkingSet, record bool) *memory {
	m := &memory{pageSize: pageSize, open: true, record: record}
	areas := make(map[uint64]*area, len(regions))
	for _, r := range sortedBy(regions, func(r Region) uint64 { return r.Base }) {
		a := &area{Region: r, pages: r.Size / pageSize}
		areas[r.Base] = a
		m.byAddress = append(m.byAddress, a)
	}
	for _, r := range sortedBy(regions, func(r Region) uint64 { return r.Offset }) {
		m.byOffset = append(m.byOffset, areas[r.Base])
	}
	if ws == nil {
		return m
	}
	for _, run := range ws.index.runs {
		m.split(run, func(a *area, first, count uint64) {
			a.wanted.setRange(first, first+count, a.pages)
		})
	}
	return m
}

// at finds the area of an address, or nil.
func (m *memory) at(addr uint64) *area {
	i := sort.Search(len(m.byAddress), func(i int) bool { return m.byAddress[i].Base > addr }) - 1
	if i < 0 || addr-m.byAddress[i].Base >= m.byAddress[i].Size {
		return nil
	}
	return m.byAddress[i]
}

// split calls each for the parts of a run that lie in areas, by the part's
// first page there and its length, in order.
func (m *memory) split(run Run, each func(a *area, first, count uint64)) {
	start, end := run.Page*m.pageSize, (run.Page+uint64(run.Count))*m.pageSize
	i := sort.Search(len(m.byOffset), func(i int) bool { return m.byOffset[i].Offset+m.byOffset[i].Size > start })
	for ; i < len(m.byOffset) && m.byOffset[i].Offset < end; i++ {
		a := m.byOffset[i]
		from, to := max(start, a.Offset), min(end, a.Offset+a.Size)
		each(a, (from-a.Offset)/m.pageSize, (to-from)/m.pageSize)
	}
}

// touch notes a demand fault. A page that the process had removed before is
// fresh memory, not a need of the snapshot. The lock is held for writing.
func (m *memory) touch(a *area, page uint64) {
	if !m.open || a.touched.has(page) || a.gone.has(page) {
		return
	}
	a.touched.set(page, a.pages)
	if !a.wanted.has(page) {
		m.remaining++
	}
	if m.record {
		m.order = append(m.order, a.Offset/m.pageSize+page)
	}
}

// recording says if the order of touch matters still.
func (m *memory) recording() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.record && m.open
}

// remove notes that pages were taken away. The lock is held for writing.
func (m *memory) remove(start, end uint64) {
	for _, a := range m.byAddress {
		from, to := max(start, a.Base), min(end, a.Base+a.Size)
		if from >= to {
			continue
		}
		m.anyGone = true
		a.gone.setRange((from-a.Base)/m.pageSize, (to-a.Base+m.pageSize-1)/m.pageSize, a.pages)
	}
}
