package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
)

// What the flags say reaches the driver, and what is wrong is named.
func TestFirecrackerConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := DefaultConfig()
	if f, err := c.firecrackerConfig(); err != nil || f.CPUTemplate != "" || f.HugePages || f.Balloon || f.NoDirtyTracking ||
		f.DiskRate != nil || f.ReceiveRate != nil || f.SendRate != nil || f.MMDS != nil {
		t.Errorf("without flags: %+v, %v", f, err)
	}
	c.Firecracker = FirecrackerConfig{
		CPUTemplate: "T2", HugePages: true, Balloon: "32Mi", DiskRate: "1Mi", ReceiveRate: "10M,500", SendRate: "64Ki",
		Metadata: write("metadata", `{"region": "here"}`),
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	f, err := c.firecrackerConfig()
	if err != nil || f.CPUTemplate != "T2" || !f.HugePages || !f.Balloon || f.BalloonMiB != 32 || !f.NoDirtyTracking || len(f.MMDS) == 0 {
		t.Errorf("driver's configuration %+v, %v", f, err)
	}
	if b := f.DiskRate.Bandwidth; *b != (fcapi.TokenBucket{Size: 104857, RefillMillis: 100}) || f.DiskRate.Ops != nil {
		t.Errorf("disk's rate %+v, %+v", b, f.DiskRate.Ops)
	}
	if r := f.ReceiveRate; r.Bandwidth.Size != 1_000_000 || r.Ops.Size != 50 || f.SendRate.Bandwidth.Size != 6553 {
		t.Errorf("network's rates %+v, %+v, %+v", r.Bandwidth, r.Ops, f.SendRate.Bandwidth)
	}
	for want, edit := range map[string]func(*FirecrackerConfig){
		"--firecracker-cpu-template": func(f *FirecrackerConfig) { f.CPUTemplate = filepath.Join(dir, "none") },
		"bitmap":                     func(f *FirecrackerConfig) { f.CPUTemplate = write("t", badTemplate) },
		"--firecracker-balloon":      func(f *FirecrackerConfig) { f.Balloon = "1Ki" },
		"off, free":                  func(f *FirecrackerConfig) { f.Balloon = "on" },
		"--firecracker-disk-rate":    func(f *FirecrackerConfig) { f.DiskRate = "fast" },
		"--firecracker-receive-rate": func(f *FirecrackerConfig) { f.ReceiveRate = "10Mi,1" },
		"--firecracker-send-rate":    func(f *FirecrackerConfig) { f.SendRate = "1Ki" },
		"--firecracker-metadata":     func(f *FirecrackerConfig) { f.Metadata = filepath.Join(dir, "none") },
		"JSON object":                func(f *FirecrackerConfig) { f.Metadata = write("m", "[1]") },
		"takes 51200":                func(f *FirecrackerConfig) { f.Metadata = write("l", `{"x":"`+strings.Repeat("x", 51200)+`"}`) },
	} {
		c := DefaultConfig()
		edit(&c.Firecracker)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %v, want %q", err, want)
		}
	}
}

const badTemplate = `{"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","modifiers":[{"register":"ecx","bitmap":"0b2"}]}]}`
