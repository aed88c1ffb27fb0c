package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
)

type id struct {
	UID, GID           int
	Groups             []int
	Cwd, Hostname      string
	CapEff, NoNewPrivs string
	Seccomp            string
}

func identity() id {
	v := id{UID: os.Getuid(), GID: os.Getgid()}
	v.Groups, _ = os.Getgroups()
	v.Cwd, _ = os.Getwd()
	v.Hostname, _ = os.Hostname()
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapEff":
			v.CapEff = value
		case "NoNewPrivs":
			v.NoNewPrivs = value
		case "Seccomp":
			v.Seccomp = value
		}
	}
	return v
}

var hoard [][]byte

// hog takes memory and touches every page of it.
func hog(mb int) {
	for range mb {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		hoard = append(hoard, b)
	}
}

// stall takes memory, and then reads pages of its own program: for seconds, or
// for hours if each of them must be brought back.
func stall(mb int) error {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	b, err := syscall.Mmap(-1, 0, mb<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	// Huge pages would make more of it than asked for.
	_ = syscall.Madvise(b, syscall.MADV_NOHUGEPAGE)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	at, sum := uint32(1), byte(0)
	for range 100_000_000 {
		// In no order: what is read in order the kernel takes for a stream.
		at = at*1664525 + 1013904223
		sum += m[int(at>>4)%len(m)]
	}
	fmt.Println(sum) // what nobody sees, the compiler does not read
	return nil
}

type filled struct {
	Bytes  int64
	ENOSPC bool
	Error  string
}

// fill writes mb megabytes to path.
func fill(r *http.Request) (any, error) {
	f, err := os.Create(r.FormValue("path"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var v filled
	chunk := []byte(strings.Repeat("x", 1<<20))
	for range number(r, "mb") {
		n, err := f.Write(chunk)
		v.Bytes += int64(n)
		if err != nil {
			v.Error, v.ENOSPC = err.Error(), errors.Is(err, syscall.ENOSPC)
			break
		}
	}
	return v, nil
}

func write(r *http.Request) error {
	return os.WriteFile(r.FormValue("path"), []byte(r.FormValue("data")), 0o644)
}

func read(r *http.Request) (string, error) {
	f, err := os.Open(r.FormValue("path"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(b), err
}

// length reads a file to its end.
func length(r *http.Request) (any, error) {
	f, err := os.Open(r.FormValue("path"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.Copy(io.Discard, f)
}

type forked struct {
	Started int
	Error   string
}

// fork starts n processes that stay, until it fails, and then kills them if
// keep is not given. They are bare forks of one thread each: a Go program of
// its own would need several, and dies if it cannot have them.
func fork(r *http.Request) (any, error) {
	var v forked
	pids := make([]int, 0, number(r, "n"))
	for range cap(pids) {
		pid, errno := bareFork()
		if errno != 0 {
			v.Error = errno.Error()
			break
		}
		pids = append(pids, pid)
	}
	v.Started = len(pids)
	if r.FormValue("keep") != "" {
		return v, nil
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
	return v, nil
}

func bareFork() (int, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		for { // no runtime here: nothing but system calls
			_, _, _ = syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	return int(pid), errno
}
