package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	maxAptFile     = 64 << 10 // bytes of apt.txt
	maxAptPackages = 200
)

// debianArch are Debian's names of the architectures images are built for.
var debianArch = map[string]string{"amd64": "amd64", "arm64": "arm64"}

// packageName is the grammar of Debian policy 5.6.1. It also keeps a name from
// being taken for an option or a list.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`)

// parseAptFile reads apt.txt: names of Debian packages separated by white space
// or new lines, # starts a comment. It returns them sorted and without doubles.
func parseAptFile(r io.Reader) ([]string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxAptFile+1))
	if err != nil {
		return nil, fmt.Errorf("apt.txt: %w", err)
	}
	if len(b) > maxAptFile {
		return nil, fmt.Errorf("apt.txt is larger than %d bytes", maxAptFile)
	}
	var names []string
	for i, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		for _, n := range strings.Fields(line) {
			if !packageName.MatchString(n) {
				return nil, fmt.Errorf("apt.txt line %d: %.80q is not the name of a Debian package (a-z, 0-9, + - . and no version)", i+1, n)
			}
			names = append(names, n)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > maxAptPackages {
		return nil, fmt.Errorf("apt.txt names %d packages, more than %d", len(names), maxAptPackages)
	}
	return names, nil
}

// aptPackages are those of dir's apt.txt, if it has one.
func aptPackages(dir string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, "apt.txt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseAptFile(f)
}

// archive is one Debian archive and suite that this machine's apt knows.
type archive struct{ origin, uri, suite, component string }

// parseIndexTargets reads what apt-get indextargets prints in indexFormat, and
// returns the archives of the distribution itself for its release codename.
// Others (vendors' archives, backports) would make bases differ from machine to
// machine.
func parseIndexTargets(b []byte, codename string) []archive {
	var as []archive
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Split(sc.Text(), "\t")
		if len(f) != 4 {
			continue
		}
		a := archive{f[0], f[1], f[2], f[3]}
		_, distribution := keyrings[a.origin]
		release := a.suite == codename || a.suite == codename+"-updates" || a.suite == codename+"-security"
		clean := !strings.ContainsFunc(a.uri+a.component, func(r rune) bool { return r <= ' ' || r == '$' })
		if distribution && release && clean {
			as = append(as, a)
		}
	}
	return as
}

const indexFormat = "$(ORIGIN)\t$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"

// keyrings of the distributions whose packages make a base.
var keyrings = map[string]string{
	"Debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
	"Ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}

// stanzas renders archives as a deb822 sources file.
func stanzas(as []archive) []byte {
	var b bytes.Buffer
	for _, a := range as {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\n", a.uri, a.suite, a.component)
		if k := keyrings[a.origin]; k != "" {
			if _, err := os.Stat(k); err == nil {
				fmt.Fprintf(&b, "Signed-By: %s\n", k)
			}
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// aptSetup is how to reach the Debian archives.
type aptSetup struct {
	sources []string // files
	options string   // a file of apt configuration
}

// aptSetup finds out how this machine's apt reaches the archives: sources,
// proxies, certificates and credentials.
func (j *job) aptSetup(ctx context.Context, codename string) (aptSetup, error) {
	var s aptSetup
	var conf bytes.Buffer
	if err := (tool{name: "apt-config", pkg: "apt", args: []string{"dump"}, out: &conf, log: io.Discard}).run(ctx); err != nil {
		return s, fmt.Errorf("bases are made of Debian packages: %w", err)
	}
	s.options = filepath.Join(j.work, "apt.conf")
	// Proxies may carry passwords, so this goes by a file and not on a command line.
	if err := os.WriteFile(s.options, acquireOptions(conf.Bytes()), 0o600); err != nil {
		return s, err
	}
	if len(j.AptSources) > 0 {
		s.sources = j.AptSources
		return s, nil
	}
	var targets bytes.Buffer
	err := tool{name: "apt-get", pkg: "apt", out: &targets, log: io.Discard,
		args: []string{"indextargets", "--format", indexFormat, "Created-By: Packages"}}.run(ctx)
	if err != nil {
		return s, fmt.Errorf("list apt sources: %w", err)
	}
	if as := parseIndexTargets(targets.Bytes(), codename); slices.ContainsFunc(as, func(a archive) bool { return a.suite == codename }) {
		file := filepath.Join(j.work, "skep.sources")
		s.sources = []string{file}
		return s, os.WriteFile(file, stanzas(as), 0o600)
	}
	// apt has no lists yet, or only a private archive: take its files as they are.
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			return s, err
		}
		for _, f := range m {
			if st, err := os.Stat(f); err == nil && st.Size() > 0 {
				s.sources = append(s.sources, f)
			}
		}
	}
	if len(s.sources) == 0 {
		return s, errors.New("this machine's apt has no sources: add a Debian archive to /etc/apt/sources.list and run apt-get update")
	}
	return s, nil
}

// acquireOptions are the lines of apt-config dump that say how to download, and
// where credentials are.
func acquireOptions(dump []byte) []byte {
	var b bytes.Buffer
	for _, line := range strings.Split(string(dump), "\n") {
		for _, skip := range []string{"Acquire::IndexTargets", "Acquire::Languages", "Acquire::Changelogs", "Acquire::cdrom", "Acquire::CompressionTypes"} {
			if strings.HasPrefix(line, skip) {
				line = ""
			}
		}
		if strings.HasPrefix(line, "Acquire::") {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("Acquire::Languages \"none\";\n")
	if st, err := os.Stat("/etc/apt/auth.conf"); err == nil && st.Size() > 0 {
		b.WriteString("Dir::Etc::netrc \"/etc/apt/auth.conf\";\n")
	}
	if m, err := filepath.Glob("/etc/apt/auth.conf.d/*"); err == nil && len(m) > 0 {
		b.WriteString("Dir::Etc::netrcparts \"/etc/apt/auth.conf.d\";\n")
	}
	return b.Bytes()
}

var codenameLine = regexp.MustCompile(`(?m)^VERSION_CODENAME="?([a-z]+)"?$`)

// hostCodename is the release of this machine, which bases have too.
func hostCodename() (string, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("bases are made of this machine's Debian packages: %w", err)
	}
	m := codenameLine.FindSubmatch(b)
	if m == nil {
		return "", errors.New("/etc/os-release has no VERSION_CODENAME: bases need a Debian (or Ubuntu) release")
	}
	return string(m[1]), nil
}
