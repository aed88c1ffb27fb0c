package main

import (
	"encoding/hex"
	"fmt"
	"hash/crc64"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// What the function keeps in memory, for the tests of snapshots.
var (
	counter  atomic.Int64
	memories []byte
)

// count counts its calls.
func count(*http.Request) (any, error) { return counter.Add(1), nil }

// remember fills mb megabytes of memory with what only a real copy brings
// back, and returns its checksum.
func remember(r *http.Request) (any, error) {
	var seed [32]byte
	seed[0] = byte(number(r, "seed"))
	memories = make([]byte, number(r, "mb")<<20)
	_, _ = rand.NewChaCha8(seed).Read(memories)
	return recall(r)
}

// recall returns the checksum of what is remembered: one that takes little time
// on an emulated processor, too, where SHA-256 would be most of the suite's.
func recall(*http.Request) (any, error) {
	return fmt.Sprintf("%016x", crc64.Checksum(memories, ecma)), nil
}

var ecma = crc64.MakeTable(crc64.ECMA)

// now is the wall clock, in nanoseconds since 1970.
func now(*http.Request) (any, error) { return time.Now().UnixNano(), nil }

// random asks the kernel for random bytes in each of the ways there are.
func random(*http.Request) (any, error) {
	v := map[string]string{}
	b := make([]byte, 16)
	n, _, errno := syscall.Syscall(sysGetrandom, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
	if errno != 0 || int(n) != len(b) {
		return nil, errno
	}
	v["getrandom"] = hex.EncodeToString(b)
	for _, name := range []string{"/dev/urandom", "/dev/random", "/proc/sys/kernel/random/uuid"} {
		f, err := os.Open(name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, err = io.ReadFull(f, b)
		f.Close()
		if err != nil {
			return nil, err
		}
		v[name] = hex.EncodeToString(b)
	}
	return v, nil
}

// draws counts what draw has drawn, by the host name at that time.
var (
	drawsMu sync.Mutex
	draws   = map[string]int{}
)

// draw starts to ask the kernel for random bytes, and never ends.
func draw(*http.Request) (any, error) {
	once := func() error {
		drawsMu.Lock()
		defer drawsMu.Unlock()
		b := make([]byte, 16)
		_, _, errno := syscall.Syscall(sysGetrandom, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
		if errno != 0 {
			return errno
		}
		name, err := os.Hostname()
		draws[name]++
		return err
	}
	if err := once(); err != nil {
		return nil, err
	}
	go func() {
		for once() == nil {
			time.Sleep(200 * time.Microsecond)
		}
	}()
	return "ok", nil
}

// drawn is how often draw has drawn, by the host name.
func drawn(*http.Request) (any, error) {
	drawsMu.Lock()
	defer drawsMu.Unlock()
	return maps.Clone(draws), nil
}
