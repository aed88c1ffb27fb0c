package testenv

import (
	"net"
	"strconv"
	"testing"
)

func TestFreePort(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 200 {
		p, err := FreePort()
		if err != nil || seen[p] {
			t.Fatalf("port %d, again: %t, %v", p, seen[p], err)
		}
		seen[p] = true
		if mine, err := take(p); err != nil || mine {
			t.Errorf("port %d can be taken twice: %v", p, err)
		}
	}
	for p := range seen {
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
}
