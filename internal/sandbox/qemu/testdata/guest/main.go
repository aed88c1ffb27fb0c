// Command guest is a function for this package's own tests.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 1 {
		panic(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("hello"))
		})))
	}
	switch os.Args[1] {
	case "take":
		mb, _ := strconv.Atoi(os.Args[2])
		b := make([]byte, mb<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("took", mb)
	case "attack":
		attack()
	}
}

// attack prints what it could reach.
func attack() {
	fmt.Println("pid", os.Getpid())
	cmdline, _ := os.ReadFile("/proc/cmdline")
	fmt.Println("cmdline", len(cmdline))
	for _, p := range []string{"/dev/vda", "/dev/mem", "/dev/ttyS0", "/init", "/modules", "/lower", "/over", "/cgroup"} {
		if _, err := os.Lstat(p); err == nil {
			fmt.Println("found", p)
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "CapBnd") || strings.HasPrefix(line, "NoNewPrivs") {
			fmt.Println(strings.Join(strings.Fields(line), " "))
		}
	}
	for name, err := range map[string]error{
		"mount":  syscall.Mount("proc", "/tmp", "proc", 0, ""),
		"mknod":  syscall.Mknod("/tmp/vda", syscall.S_IFBLK|0o600, 254<<8),
		"chroot": syscall.Chroot("/tmp"),
		"reboot": syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART),
		"sysrq":  os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0),
		"sysctl": os.WriteFile("/proc/sys/kernel/hostname", []byte("x"), 0),
		"cgroup": os.WriteFile("/sys/fs/cgroup/memory.max", []byte("max"), 0),
	} {
		if err == nil {
			fmt.Println("could", name)
		}
	}
	if c, err := net.DialTimeout("tcp4", "172.16.0.2:10240", 5*time.Second); err == nil {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write(make([]byte, 32))
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			fmt.Println("the agent answered")
		}
	}
	fmt.Println("done")
}
