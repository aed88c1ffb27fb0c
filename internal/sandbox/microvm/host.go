package microvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// VCPUs is how many processors a machine needs for a limit in thousandths.
func VCPUs(millis int64) int64 {
	return max(1, min((millis+999)/1000, int64(runtime.NumCPU())))
}

// HostCPU is the first processor's model, and its features, sorted.
func HostCPU() (model string, features []string, err error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", nil, err
	}
	model, features = parseCPU(string(info))
	return model, features, nil
}

// parseCPU reads /proc/cpuinfo.
func parseCPU(cpuinfo string) (model string, features []string) {
	values := map[string]string{}
	for line := range strings.Lines(cpuinfo) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			if len(values) > 0 {
				break // the next processor
			}
			continue
		}
		values[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	features = strings.Fields(values["flags"])
	slices.Sort(features)
	var id []string
	for _, key := range []string{"vendor_id", "cpu family", "model", "stepping"} {
		id = append(id, values[key])
	}
	return strings.Join(id, " "), slices.Compact(features)
}

// Program is a monitor's, which is asked for its version once.
type Program struct {
	Path string

	asking chan struct{} // lock of the answer
	first  string
}

// NewProgram is the program at a path.
func NewProgram(path string) *Program { return &Program{Path: path, asking: make(chan struct{}, 1)} }

// maxVersion bounds the first line of what a program prints as its version.
const maxVersion = 200

// Version is the first line that the program prints when asked for it.
func (p *Program) Version(ctx context.Context) (string, error) {
	if err := Lock(ctx, p.asking); err != nil {
		return "", err
	}
	defer Unlock(p.asking)
	if p.first != "" {
		return p.first, nil
	}
	out, err := exec.CommandContext(ctx, p.Path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", p.Path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	if first = strings.TrimSpace(first); first == "" || len(first) > maxVersion {
		return "", fmt.Errorf("%s --version printed %.200q", p.Path, out)
	}
	p.first = first
	return first, nil
}
