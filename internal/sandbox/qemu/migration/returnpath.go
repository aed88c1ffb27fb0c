package migration

import (
	"fmt"
	"io"
)

// Messages on the return path, from the destination to the source.
const (
	replyShut     = 1 // the destination is done: be32 status, 0 is good
	replyPong     = 2
	replyPagesID  = 3 // be64 start, be32 length, name of the block
	replyPages    = 4 // the same of the block named last
	replySwitchAc = 7
)

// maxRequest bounds the bytes that one request may ask for: QEMU asks for a
// page of the host.
const maxRequest = 2 << 20

// reply is a message on the return path.
type reply struct {
	kind   uint16
	status uint32
	block  string
	start  uint64 // bytes, of a whole page
	length uint64 // bytes, of whole pages
}

// replies reads the return path. QEMU is trusted less than the host, as the
// guest may have taken it over.
type replies struct {
	d     *decoder
	block string // named last
}

func newReplies(r io.Reader) *replies { return &replies{d: newDecoder(r)} }

// next reads a message. io.EOF is the end between two.
func (r *replies) next() (reply, error) {
	d := r.d
	if _, ok := d.peek(); !ok {
		if d.err != nil {
			return reply{}, d.err
		}
		return reply{}, io.EOF
	}
	m := reply{kind: d.u16()}
	n := d.u16()
	want := -1
	switch m.kind {
	case replyShut, replyPong:
		want = 4
		if n == 4 {
			m.status = d.u32()
		}
	case replyPages, replyPagesID:
		want = 12
		if m.kind == replyPagesID {
			want = int(n)
			if n < 12+1+1 || n > 12+1+255 {
				d.badf("request of %d bytes", n)
				break
			}
		}
		if int(n) == want {
			r.request(&m, n)
		}
	case replySwitchAc:
		want = 0
	}
	if d.err == nil && int(n) != want {
		d.badf("message of type %d with %d bytes on the return path", m.kind, n)
	}
	return m, d.err
}

func (r *replies) request(m *reply, n uint16) {
	d := r.d
	m.start, m.length = d.u64(), uint64(d.u32())
	if m.kind == replyPagesID {
		name := make([]byte, n-12-1)
		if size := d.u8(); d.err == nil && int(size) != len(name) {
			d.badf("request of %d bytes has a name of %d", n, size)
			return
		}
		d.read(name)
		r.block = string(name)
	}
	m.block = r.block
	if d.err != nil {
		return
	}
	if m.block == "" || m.start%PageSize != 0 || m.length == 0 || m.length%PageSize != 0 || m.length > maxRequest {
		d.badf("request for %d bytes at %#x of block %q", m.length, m.start, m.block)
	}
}

// check says whether the request lies in the block.
func (b *Block) check(m reply) error {
	if m.start >= b.Size || m.length > b.Size-m.start {
		return fmt.Errorf("%w: request for %d bytes at %#x of block %q, which has %#x", ErrFormat, m.length, m.start, m.block, b.Size)
	}
	return nil
}
