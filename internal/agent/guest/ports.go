package guest

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// Between two looks at the kernel's table of sockets. The function is starting
// on the same, slow CPU.
const (
	firstLook = 2 * time.Millisecond
	maxLook   = 16 * time.Millisecond
)

// WaitPort waits until something listens on a port on an address that the
// host can reach. It reads the kernel's table: dialling would show the
// function a connection that nobody made.
func (g *guest) WaitPort(ctx context.Context, port uint16) (bool, error) {
	for pause := firstLook; ; pause = min(pause*5/4, maxLook) {
		for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			f, err := os.Open(table)
			if err != nil {
				continue // no IPv6
			}
			open, err := listens(f, port)
			_ = f.Close()
			if err != nil {
				return false, fmt.Errorf("%s: %w", table, err)
			}
			if open {
				return true, nil
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false, nil
		}
	}
}

const stateListen = "0A" // TCP_LISTEN

// listens looks for a listener in the format of /proc/net/tcp. Listeners come
// first there.
func listens(r io.Reader, port uint16) (bool, error) {
	sc := bufio.NewScanner(r)
	sc.Scan() // the heading
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 4 || f[3] != stateListen {
			continue
		}
		addr, p, ok := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(p, 16, 16)
		if !ok || err != nil || uint16(n) != port {
			continue
		}
		if !loopback(addr) {
			return true, nil
		}
	}
	return false, sc.Err()
}

// loopback says if an address in the kernel's format (words of the machine's
// byte order) is one that only the guest itself reaches.
func loopback(addr string) bool {
	b, err := hex.DecodeString(addr)
	if err != nil {
		return true
	}
	switch len(b) {
	case 4:
		return b[3] == 127
	case 16:
		const one, mapped = "00000000000000000000000001000000", "0000000000000000FFFF0000"
		return addr == one || (strings.HasPrefix(addr, mapped) && b[15] == 127)
	}
	return true
}
