package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// parse parses a line of flags as singlevm does, up to where it would begin.
func parse(line string) (*singleFlags, error) {
	s := &singleFlags{}
	cmd := s.command(&globals{})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	if err := cmd.ParseFlags(strings.Fields(line)); err != nil {
		return nil, err
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return nil, err
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return nil, err
	}
	return s, s.complete(cmd, &globals{})
}

// TestSpellings has every spelling of SnapFaaS's flags, of its README and of
// its code, mean what it says.
func TestSpellings(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"root", "app", "kernel"} {
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := func(name, id, base string) {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
		meta := `{"version":1,"id":"` + id + `","base":"` + base + `","point":"app"}`
		if err := os.WriteFile(filepath.Join(name, "skep.json"), []byte(meta), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	snapshot("base", "b", "")
	snapshot("diff", "d", "b")
	snapshot("top", "t", "d")
	if err := os.Mkdir("new", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("top/WS-t", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(names string) string {
		var all []string
		for n := range strings.SplitSeq(names, ",") {
			all = append(all, filepath.Join(dir, n))
		}
		return strings.Join(all, ",")
	}
	const two = "--load_dir base,diff "
	for _, test := range []struct {
		line string
		is   func(s *singleFlags) bool
	}{
		{"--kernel kernel", func(s *singleFlags) bool { return s.kernel == "kernel" }},
		{"-k kernel", func(s *singleFlags) bool { return s.kernel == "kernel" }},
		{"--kernel_args quiet", func(s *singleFlags) bool { return s.kernelArgs == "quiet" }},
		{"--kernel-args=a,b", func(s *singleFlags) bool { return s.kernelArgs == "a,b" }},
		{"-c quiet", func(s *singleFlags) bool { return s.kernelArgs == "quiet" }},
		{"", func(s *singleFlags) bool {
			return s.conf.Rootfs == at("root") && s.conf.MemoryMiB == 128 && s.conf.VCPUs == 1
		}},
		{"-r app", func(s *singleFlags) bool { return s.conf.Rootfs == at("app") }},
		{"--id x1", func(s *singleFlags) bool { return s.conf.Hostname == "vm-x1" }},
		{"--mem_size 256", func(s *singleFlags) bool { return s.conf.MemoryMiB == 256 }},
		{"--mem-size 256", func(s *singleFlags) bool { return s.conf.MemoryMiB == 256 }},
		{"--memory 256", func(s *singleFlags) bool { return s.conf.MemoryMiB == 256 }},
		{"--vcpu_count 2", func(s *singleFlags) bool { return s.conf.VCPUs == 2 }},
		{"--vcpu-count=2", func(s *singleFlags) bool { return s.conf.VCPUs == 2 }},
		{"--vcpu 2", func(s *singleFlags) bool { return s.conf.VCPUs == 2 }},
		{"--network", func(s *singleFlags) bool { return s.network }},
		{"--firerunner ./firerunner", func(s *singleFlags) bool { return s.firerunner == "./firerunner" }},
		{"--load_dir base", func(s *singleFlags) bool { return strings.Join(s.conf.Load.Dirs, ",") == at("base") }},
		{"--load-dir base,diff", func(s *singleFlags) bool { return strings.Join(s.conf.Load.Dirs, ",") == at("base,diff") }},
		{"--load_dir base --diff_dirs diff,top", func(s *singleFlags) bool { return strings.Join(s.conf.Load.Dirs, ",") == at("base,diff,top") }},
		{"--load_dir base --diff-dir diff", func(s *singleFlags) bool { return strings.Join(s.conf.Load.Dirs, ",") == at("base,diff") }},
		{two + "--copy_base", func(s *singleFlags) bool { return s.conf.Load.CopyBase }},
		{two + "--copy-base-memory", func(s *singleFlags) bool { return s.conf.Load.CopyBase }},
		{two + "--copy_diff", func(s *singleFlags) bool { return s.conf.Load.CopyDiff && !s.conf.Load.LazyDiff }},
		{two + "--copy_diff_memory", func(s *singleFlags) bool { return s.conf.Load.CopyDiff && !s.conf.Load.LazyDiff }},
		{two + "--copy-diff=false", func(s *singleFlags) bool { return s.conf.Load.LazyDiff && !s.conf.Load.CopyDiff }},
		{two, func(s *singleFlags) bool { return !s.conf.Load.LazyDiff && s.conf.Dump.WorkingSet == "" }},
		{two + "--diff_dirs top --load_ws", func(s *singleFlags) bool { return s.conf.Load.WorkingSet }},
		{two + "--dump_ws", func(s *singleFlags) bool { return s.conf.Dump.WorkingSet == at("diff") }},
		{two + "--dump_ws diff", func(s *singleFlags) bool { return s.conf.Dump.WorkingSet == at("diff") }},
		{two + "--dump_ws=diff", func(s *singleFlags) bool { return s.conf.Dump.WorkingSet == at("diff") }},
		{"--dump-ws --load_dir base", func(s *singleFlags) bool { return s.conf.Dump.WorkingSet == at("base") }},
		{"--dump_dir new", func(s *singleFlags) bool { return s.conf.Dump.Dir == at("new") && !s.conf.Dump.Exit }},
		{"--dump-dir=new --force-exit", func(s *singleFlags) bool { return s.conf.Dump.Dir == at("new") && s.conf.Dump.Exit }},
		{"--dump_dir new --snapshot_point app", func(s *singleFlags) bool { return s.conf.Dump.Point == guest.App }},
	} {
		s, err := parse("--rootfs root --appfs app " + test.line)
		if err != nil {
			t.Errorf("%s: %v", test.line, err)
		} else if !test.is(s) || len(s.ineffective()) != 0 {
			t.Errorf("%s: %+v, %q", test.line, s.conf, s.ineffective())
		}
	}

	for _, flag := range []string{
		"odirect_base", "odirect-base", "no_odirect_diff", "no_odirect_root", "no-odirect-app",
		"tap=tap0", "mac=06:00:00:00:00:01", "vsock_cid=3", "vsock-cid=3", "load_dir=base --kernel_args=quiet",
	} {
		s, err := parse("--rootfs root --appfs app --" + flag)
		if err != nil {
			t.Errorf("--%s: %v", flag, err)
		} else if lines := s.ineffective(); len(lines) != 1 || !strings.Contains(lines[0], "has no effect here") {
			t.Errorf("--%s: it is said %q", flag, lines)
		}
	}

	for _, test := range []struct{ line, want string }{
		{"--dump_ws", "--dump_ws: it needs --load_dir"},
		{two + "--dump_ws=base", "is not the newest folder loaded"},
		{two + "--dump_ws base more", "unknown argument"},
		{two + "new", "unknown argument"},
		{two + "--dump_ws --force_exit --dump_dir new", "--dump_ws: not together with --force_exit"},
		{two + "--dump_ws --copy_base", "--copy_base: not together with --dump_ws"},
		{two + "--dump_dir diff", "is loaded, too"},
		{two + "--load_ws", "working set: there is none"},
		{"--load_dir base --copy_diff=false", "--copy_diff=false: it needs a diff"},
		{"--diff_dirs diff", "--diff_dirs: it needs the base"},
		{"--snapshot_point app", "--snapshot_point: it says when --dump_dir"},
		{"--boot_timeout 0", "--boot_timeout: 0s is no time"},
		{"--request-timeout=-1s", "--request_timeout: -1s is no time"},
		{"--lmdb x", "unknown flag"},
	} {
		if _, err := parse("--rootfs root --appfs app " + test.line); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.line, err, test.want)
		}
	}
	if _, err := parse("--appfs app"); err == nil || !strings.Contains(err.Error(), "rootfs") {
		t.Errorf("without --rootfs: %v", err)
	}
}

// TestMultiSpellings has those of multivm, and what skep is by other names.
func TestMultiSpellings(t *testing.T) {
	for _, line := range []string{
		"--config=c.yaml --mem=512 --listen=3456",
		"-c c.yaml --mem 512 -l 3456",
	} {
		cmd := newMultiVM(&globals{})
		if err := cmd.ParseFlags(strings.Fields(line)); err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		for name, want := range map[string]string{"config": "c.yaml", "mem": "512", "listen": "3456"} {
			if got := cmd.Flag(name).Value.String(); got != want {
				t.Errorf("%s: --%s is %q, want %q", line, name, got, want)
			}
		}
	}
	for in, want := range map[string]string{"3456": "127.0.0.1:3456", ":3456": ":3456", "10.0.0.1:1": "10.0.0.1:1"} {
		if got := listenAddress(in); got != want {
			t.Errorf("--listen %s: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"/usr/bin/singlevm -k x": "skep singlevm -k x", "firerunner": "skep firerunner", "multivm": "skep multivm", "skep up": "skep up",
	} {
		if got := strings.Join(asCalled(strings.Fields(in)), " "); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
