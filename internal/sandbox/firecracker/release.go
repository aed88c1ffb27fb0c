package firecracker

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed version.txt
var pinned string

// Release is a release of Firecracker, for x86_64.
type Release struct {
	Version string // with its "v"
	SHA256  string // of the archive, in hexadecimal digits
	Kernel  KernelPackage
}

// KernelPackage is a kernel of the distribution.
type KernelPackage struct {
	Name, Version string
	SHA256        string // of the .deb, in hexadecimal digits
}

// Pinned is the release that this driver is written and tested against.
func Pinned() Release {
	r, err := parseRelease(pinned)
	if err != nil {
		return Release{} // a test sees to it that it is not
	}
	return r
}

// parseRelease reads version.txt.
func parseRelease(text string) (Release, error) {
	var r Release
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#"):
		case f[0] == "kernel" && len(f) == 4:
			r.Kernel = KernelPackage{Name: f[1], Version: f[2], SHA256: f[3]}
		case len(f) != 2:
			return r, fmt.Errorf("version.txt: %q is not a word and a value", line)
		case f[0] == "version":
			r.Version = f[1]
		case f[0] == "x86_64":
			r.SHA256 = f[1]
		}
	}
	if !strings.HasPrefix(r.Version, "v") || len(r.SHA256) != 64 {
		return r, fmt.Errorf("version.txt: version or x86_64 is missing")
	}
	if !kernelName.MatchString(r.Kernel.Name) || len(r.Kernel.SHA256) != 64 {
		return r, fmt.Errorf("version.txt: kernel is not a package, a version and a SHA-256")
	}
	return r, nil
}

var kernelName = regexp.MustCompile(`^linux-image-[0-9][0-9a-z.+-]*-cloud-amd64$`)

// Archive is the name of the release's archive.
func (r Release) Archive() string { return "firecracker-" + r.Version + "-x86_64.tgz" }

// URL is where the archive is published.
func (r Release) URL() string {
	return "https://github.com/firecracker-microvm/firecracker/releases/download/" + r.Version + "/" + r.Archive()
}

// Member is the path of a program, such as "jailer", in the archive.
func (r Release) Member(program string) string {
	return "release-" + r.Version + "-x86_64/" + program + "-" + r.Version + "-x86_64"
}
