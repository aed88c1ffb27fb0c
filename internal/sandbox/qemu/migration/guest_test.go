package migration_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test's own program is the guest's first process, too.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		if _, err := os.Stat("/modules/order"); err == nil {
			guest()
		}
	}
	os.Exit(run(m))
}

// sharedDir holds what all tests use.
var sharedDir string

func run(m *testing.M) int {
	var err error
	if sharedDir, err = os.MkdirTemp("", "skep-migration-"); err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(sharedDir)
	if err := os.Chmod(sharedDir, 0o755); err != nil { // QEMU may run as somebody else
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

const guestMemory = 40 << 20 // bytes that the guest fills

// guest fills its memory and then answers lines on the console.
func guest() {
	debug.SetGCPercent(-1)
	fail := func(err error) {
		fmt.Println("guest failed:", err)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	if err := loadModules(); err != nil {
		fail(err)
	}
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		fail(err)
	}
	mem, err := unix.Mmap(-1, 0, guestMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		fail(err)
	}
	fill(mem, 1)
	fmt.Printf("ready %x\n", sum(mem))
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		verb, arg, _ := strings.Cut(strings.TrimSpace(in.Text()), " ")
		n, _ := strconv.Atoi(arg)
		switch verb {
		case "sum": // of everything
			fmt.Printf("sum %x\n", sum(mem))
		case "touch": // some pages, far from each other
			total := uint64(0)
			for i := range n {
				page := i * 7 % (guestMemory / 4096)
				total += binary.LittleEndian.Uint64(mem[page*4096:])
			}
			fmt.Printf("touched %x\n", total)
		case "dirty": // the first pages
			fill(mem[:n*4096], 2)
			fmt.Printf("dirtied %x\n", sum(mem))
		case "zero":
			clear(mem[:n*4096])
			fmt.Printf("zeroed %x\n", sum(mem))
		case "disk":
			data := make([]byte, 64<<10)
			f, err := os.Open("/dev/vda")
			if err == nil {
				_, err = f.ReadAt(data, 0)
				_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				_ = f.Close()
			}
			fmt.Printf("disk %x %v\n", sum(data), err)
		default:
			fmt.Printf("what? %q\n", verb)
		}
	}
	fail(in.Err())
}

// fill writes what cannot be compressed (splitmix64).
func fill(mem []byte, seed uint64) {
	for i := 0; i < len(mem); i += 8 {
		seed += 0x9e3779b97f4a7c15
		z := (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(mem[i:], z^z>>31)
	}
}

// sum depends on every byte and its place.
func sum(mem []byte) uint64 {
	h := uint64(len(mem))
	for i := 0; i < len(mem); i += 8 {
		h = (h ^ binary.LittleEndian.Uint64(mem[i:])) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	return h
}

func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, p := range strings.Fields(string(order)) {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", p, err)
		}
	}
	return nil
}
