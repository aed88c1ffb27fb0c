package network

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Building blocks of nftables rules. Each loads something into register 1
// and compares it. Prefixes are matched one rule each rather than by a set:
// the library's sets share a counter between connections, unguarded.

var (
	accept     = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade = []expr.Any{&expr.Masq{}}
	notrack    = []expr.Any{&expr.Notrack{}}

	established = ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	invalid     = ctState(expr.CtStateBitINVALID)
)

// addRule adds a rule made of the parts, in order.
func addRule(c *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: slices.Concat(parts...)})
}

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(op, data)}
}

// ifname is an interface's name as the kernel compares it whole.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func in(name string) []expr.Any  { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(name)) }
func out(name string) []expr.Any { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, ifname(name)) }

// inPrefix and outPrefix match all interfaces whose names begin so.
func inPrefix(prefix string) []expr.Any {
	return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(prefix))
}

func outPrefix(op expr.CmpOp, prefix string) []expr.Any {
	return meta(expr.MetaKeyOIFNAME, op, []byte(prefix))
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

// notUnicast matches packets to addresses of this very namespace, and to
// broadcast and multicast addresses.
func notUnicast() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpNeq, binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)),
	}
}

func ipv4() []expr.Any {
	return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4})
}

func payload(base expr.PayloadBase, offset, length uint32, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length},
		compare(op, data),
	}
}

const (
	offsetSource      = 12 // in the IPv4 header
	offsetDestination = 16
)

// address matches an address in the IPv4 header.
func address(offset uint32, p netip.Prefix) []expr.Any {
	p = p.Masked()
	ip := p.Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4),
		},
		compare(expr.CmpOpEq, ip[:]),
	}
}

// port matches the destination port of TCP (6) or UDP (17).
func port(protocol byte, number uint16) []expr.Any {
	return slices.Concat(
		meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{protocol}),
		payload(expr.PayloadBaseTransportHeader, 2, 2, expr.CmpOpEq, binaryutil.BigEndian.PutUint16(number)),
	)
}

// over matches new connections when there are more than limit.
func over(limit uint32) []expr.Any {
	return append(ctState(expr.CtStateBitNEW),
		&expr.Connlimit{Count: limit, Flags: expr.NFT_CONNLIMIT_F_INV})
}

const flagSYN, flagRST, flagACK = 0x02, 0x04, 0x10

func flagsTCP(mask byte, op expr.CmpOp, value byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		compare(op, []byte{value}),
	}
}

// answerTCP matches the segments of TCP that open no connection.
func answerTCP() []expr.Any {
	return slices.Concat(
		meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}),
		flagsTCP(flagACK|flagRST, expr.CmpOpNeq, 0),
	)
}

// clampMSS lowers the segment size that TCP's SYN announces to what the route
// bears.
func clampMSS() []expr.Any {
	const optionMSS = 2
	return slices.Concat(
		meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}),
		flagsTCP(flagSYN|flagRST, expr.CmpOpEq, flagSYN),
		[]expr.Any{
			&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
			&expr.Exthdr{SourceRegister: 1, Type: optionMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
		},
	)
}
