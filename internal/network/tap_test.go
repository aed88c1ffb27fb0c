package network_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

const vnetHeader = 10

// openTAP attaches to the device as QEMU does.
func openTAP(t *testing.T, link sandbox.Link) *os.File {
	t.Helper()
	var fd int
	err := netns.Do(link.NetNS, func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(link.Interface)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_ONE_QUEUE)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		size := int32(vnetHeader)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETVNETHDRSZ, uintptr(unsafe.Pointer(&size))); errno != 0 {
			return errno
		}
		return unix.SetNonblock(fd, true)
	})
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	t.Cleanup(func() { f.Close() })
	return f
}

// receive returns the first frame that matches, without its vnet header.
func receive(t *testing.T, tap *os.File, wait time.Duration, match func([]byte) bool) []byte {
	t.Helper()
	buf := make([]byte, 65536)
	tap.SetReadDeadline(time.Now().Add(wait))
	for {
		n, err := tap.Read(buf)
		if err != nil {
			return nil
		}
		if n > vnetHeader && match(buf[vnetHeader:n]) {
			return bytes.Clone(buf[vnetHeader:n])
		}
	}
}

func send(t *testing.T, tap *os.File, frame []byte) {
	t.Helper()
	if _, err := tap.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		t.Fatal(err)
	}
}

var (
	gatewayMAC = net.HardwareAddr{0x06, 0x00, 0xac, 0x10, 0x00, 0x01}
	guestMAC   = net.HardwareAddr{0x06, 0x00, 0xac, 0x10, 0x00, 0x02}
	gatewayIP  = net.IPv4(172, 16, 0, 1).To4()
	guestIP    = net.IPv4(172, 16, 0, 2).To4()
	strangeMAC = net.HardwareAddr{0x06, 1, 1, 1, 1, 1}
	strangeIP  = net.IPv4(172, 16, 0, 3).To4()
)

func ethernet(dst, src net.HardwareAddr, kind uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(bytes.Clone(dst), src...), kind), body...)
}

func arpRequest(src, sender net.HardwareAddr, ip, target net.IP) []byte {
	body := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	body = append(append(body, sender...), ip...)
	body = append(append(body, make([]byte, 6)...), target...)
	return ethernet(net.HardwareAddr{255, 255, 255, 255, 255, 255}, src, unix.ETH_P_ARP, body)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// datagram is a UDP datagram to port 9999 of the gateway.
func datagram(src net.HardwareAddr, ip net.IP, text string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, 7777)
	udp = binary.BigEndian.AppendUint16(udp, 9999)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...) // no checksum
	head := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	head = append(append(head, ip...), gatewayIP...)
	binary.BigEndian.PutUint16(head[2:], uint16(len(head)+len(udp)))
	binary.BigEndian.PutUint16(head[10:], checksum(head))
	return ethernet(gatewayMAC, src, unix.ETH_P_IP, append(head, udp...))
}

// TestTAP plays the guest on a TAP device.
func TestTAP(t *testing.T) {
	t.Parallel()
	m := manager(t, testConfig(t))
	link := acquire(t, m, network.Options{Kind: sandbox.LinkTAP}).Link()
	tap := openTAP(t, link)

	t.Run("dial", func(t *testing.T) {
		if err := network.WaitCarrier(t.Context(), link); err != nil {
			t.Fatal(err)
		}
		// No ARP: the first thing the guest hears is the SYN.
		ctx, cancel := context.WithTimeout(t.Context(), never)
		defer cancel()
		go func() {
			if c, err := netns.Dial(ctx, link.DialNS, "tcp", "172.16.0.2:80"); err == nil {
				c.Close()
			}
		}()
		frame := receive(t, tap, soon, func([]byte) bool { return true })
		want := ethernet(guestMAC, gatewayMAC, unix.ETH_P_IP, nil)
		if !bytes.HasPrefix(frame, want) {
			t.Errorf("first frame % x, want % x...", frame, want)
		}
	})

	t.Run("arp", func(t *testing.T) {
		reply := func(f []byte) bool { return len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 }
		send(t, tap, arpRequest(guestMAC, strangeMAC, guestIP, gatewayIP))
		send(t, tap, arpRequest(guestMAC, guestMAC, strangeIP, gatewayIP))
		send(t, tap, arpRequest(strangeMAC, guestMAC, guestIP, gatewayIP))
		if f := receive(t, tap, never, reply); f != nil {
			t.Errorf("answer to a spoofed question: % x", f)
		}
		send(t, tap, arpRequest(guestMAC, guestMAC, guestIP, gatewayIP))
		f := receive(t, tap, soon, reply)
		if f == nil || !bytes.Equal(f[22:28], gatewayMAC) || !bytes.Equal(f[28:32], gatewayIP) {
			t.Errorf("answer to the guest's question: % x", f)
		}
	})

	t.Run("spoofed address", func(t *testing.T) {
		// The router knows a flow with the guest, in which answers are let in.
		var pc net.PacketConn
		err := netns.Do(link.DialNS, func() (err error) {
			pc, err = net.ListenPacket("udp4", "172.16.0.1:9999")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		for _, ip := range []net.IP{guestIP, strangeIP} {
			if _, err := pc.WriteTo([]byte("?"), &net.UDPAddr{IP: ip, Port: 7777}); err != nil {
				t.Fatal(err)
			}
		}
		send(t, tap, datagram(strangeMAC, guestIP, "other MAC"))
		send(t, tap, datagram(guestMAC, strangeIP, "other address"))
		send(t, tap, datagram(guestMAC, guestIP, "true"))
		pc.SetReadDeadline(time.Now().Add(soon))
		buf := make([]byte, 100)
		n, _, err := pc.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "true" {
			t.Errorf("first datagram that passes: %q, %v", buf[:n], err)
		}
	})
}
