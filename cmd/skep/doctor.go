package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// check is one thing that Skep needs, or can use, of a machine.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warn or fail
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

func newDoctor(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine has of what Skep needs",
		Long: `Check what this machine has of what Skep needs. The exit code is 1 if something
that every sandbox needs is missing; what only one driver needs is a warning.
It changes nothing; 'skep up' proves the chosen driver by a real start.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := doctor(g)
			err := g.print(cmd.OutOrStdout(), checks, func() *table {
				t := &table{head: []string{"", "CHECK", "DETAIL", "FIX"}}
				for _, c := range checks {
					t.add(map[string]string{checkOK: "ok", checkWarn: "!", checkFail: "X"}[c.Status], c.Name, c.Detail, c.Fix)
				}
				return t
			})
			for _, c := range checks {
				if c.Status == checkFail && err == nil {
					err = errors.New("this machine lacks what Skep needs, see above")
				}
			}
			return err
		},
	}
	outputFlag(cmd, g)
	return cmd
}

func doctor(g *globals) []check {
	data := g.dataDir()
	if data == "" {
		data = "/var/lib"
	}
	return []check{
		checkRoot(),
		checkKernelFS("overlay", checkWarn, "runc", "modprobe overlay"),
		checkKernelFS("erofs", checkWarn, "runc", "modprobe erofs"),
		checkCgroups(),
		checkFile("TUN devices", "/dev/net/tun", checkWarn, "needed by qemu", "modprobe tun"),
		checkTool("runc", "runc", "the runc driver"),
		checkTool("qemu-system-x86_64", "qemu-system-x86", "the qemu driver"),
		checkFirecracker(),
		checkGuestKernel(),
		checkTool("mmdebstrap", "mmdebstrap", "skep image build (python3, node, java)"),
		checkTool("go", "golang", "skep image build (go)"),
		checkKVM(),
		checkDisk(data),
	}
}

func checkRoot() check {
	if os.Geteuid() == 0 {
		return check{"root", checkOK, "running as root", ""}
	}
	return check{"root", checkFail, "skep up needs root", "sudo skep up"}
}

func checkKernelFS(name, miss, user, fix string) check {
	b, _ := os.ReadFile("/proc/filesystems")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return check{"kernel: " + name, checkOK, "supported", ""}
		}
	}
	return check{"kernel: " + name, miss, "not loaded; needed by " + user, fix}
}

func checkCgroups() check {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return check{"cgroups", checkOK, "version 2", ""}
	}
	for _, c := range []string{"memory", "cpu", "pids", "freezer"} {
		if _, err := os.Stat(filepath.Join(root, c)); err != nil {
			return check{"cgroups", checkFail, "version 1 without the " + c + " controller", "mount it below " + root}
		}
	}
	return check{"cgroups", checkOK, "version 1", ""}
}

func checkFile(name, path, miss, detail, fix string) check {
	if _, err := os.Stat(path); err != nil {
		return check{name, miss, path + " is missing; " + detail, fix}
	}
	return check{name, checkOK, path, ""}
}

func checkTool(tool, pkg, user string) check {
	path, err := exec.LookPath(tool)
	if err != nil {
		return check{tool, checkWarn, "not found; needed by " + user, "apt-get install " + pkg}
	}
	return check{tool, checkOK, path, ""}
}

func checkGuestKernel() check {
	found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if len(found) == 0 {
		return check{"guest kernel", checkWarn, "no cloud kernel in /boot; needed by the qemu driver", "apt-get install linux-image-cloud-amd64"}
	}
	return check{"guest kernel", checkOK, found[len(found)-1], ""}
}

func checkKVM() check {
	const name = "KVM"
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return check{name, checkWarn, "/dev/kvm is missing: micro-VMs run by emulation", "enable virtualization in the firmware or the hypervisor"}
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	if !strings.Contains(string(b), " vmx") && !strings.Contains(string(b), " svm") {
		return check{name, checkWarn, "/dev/kvm is there, but the processor shows neither vmx nor svm: micro-VMs run by emulation", ""}
	}
	return check{name, checkOK, "/dev/kvm and hardware virtualization; proved at start", ""}
}

func checkDisk(path string) check {
	for {
		if _, err := os.Stat(path); err == nil || path == "/" {
			break
		}
		path = filepath.Dir(path)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return check{"disk", checkWarn, err.Error(), ""}
	}
	free := int64(st.Bavail) * st.Bsize
	detail := fmt.Sprintf("%s free at %s", size(free), path)
	if free < 2<<30 {
		return check{"disk", checkWarn, detail, "at least 2 GiB are advisable"}
	}
	return check{"disk", checkOK, detail, ""}
}
