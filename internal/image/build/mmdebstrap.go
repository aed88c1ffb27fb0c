package build

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// commonPackages are in every base: release facts, certificates, time zones, a
// shell for programs that start others, and busybox for a look inside.
var commonPackages = []string{"base-files", "busybox", "ca-certificates", "dash", "netbase", "tzdata"}

// dropped never get into a base: what only installing needs, what tells of this
// machine (archives, proxies, host name), and what only people read. Licences
// stay.
var dropped = []string{
	"boot", "dev", "etc/apt", "etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf", "home", "media", "mnt", "proc", "run", "srv", "sys", "tmp",
	"usr/share/bash-completion", "usr/share/bug", "usr/share/info", "usr/share/initramfs-tools", "usr/share/lintian",
	"usr/share/locale", "usr/share/man", "usr/share/menu", "usr/share/pixmaps",
	"var/backups", "var/cache", "var/lib/apt", "var/lib/dpkg/info", "var/log", "var/tmp", "var/run", "var/lock",
}

// droppedPlain are dropped as well where no apt.txt asks for more packages,
// which might need them.
var droppedPlain = []string{
	"etc/cron.daily", "etc/default", "etc/init.d", "etc/kernel", "etc/update-motd.d",
	"etc/alternatives", "etc/dpkg", "usr/bin/dpkg", "usr/bin/tar", "usr/lib/dpkg", "usr/sbin/start-stop-daemon", "usr/share/dpkg",
	"usr/bin/openssl", "usr/bin/c_rehash", "usr/lib/systemd", "usr/lib/ssl/misc", "usr/share/perl5",
	"usr/share/applications", "usr/share/polkit-1", "usr/share/debianutils", "usr/share/common-licenses/GFDL-1.2",
	"usr/share/zoneinfo/right", "usr/share/zoneinfo/posix", "var/spool", "var/mail", "var/local", "var/opt", "opt",
}

// droppedDeep match paths that hold a version or a triplet.
var droppedDeep = regexp.MustCompile(`^usr/lib/(` +
	`[^/]+-linux-gnu/gconv/|` + // conversions between old character sets
	`python3[^/]*/(config-|ensurepip/|idlelib/|lib2to3/|pydoc_data/|test/|turtledemo/)|` +
	`jvm/[^/]+/(lib/ct\.sym$|lib/server/classes_nocoops\.jsa$|man/|docs/))|` +
	`^usr/s?bin/dpkg-`)

func keepAll(*tar.Header) bool { return true }

// keepForBase says which files of a fresh Debian root a base has.
func keepForBase(plain bool) func(h *tar.Header) bool {
	under := func(name string, dirs []string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return name == d || strings.HasPrefix(name, d+"/") })
	}
	return func(h *tar.Header) bool {
		switch n := h.Name; {
		case under(n, dropped), strings.Contains(n+"/", "/__pycache__/"):
			return false
		case plain && (under(n, droppedPlain) || droppedDeep.MatchString(n)):
			return false
		case strings.HasPrefix(n, "usr/share/doc/"):
			link := h.Typeflag == tar.TypeSymlink && strings.Count(n, "/") == 3
			return link || path.Base(n) == "copyright" && h.Typeflag != tar.TypeDir
		}
		return true
	}
}

// makeBase makes a base in a new folder of the work folder and returns that.
//
// Without apt.txt packages are only unpacked and the few things their
// installation scripts would do are done here: that takes a fifth of the time
// and half of the space, and needs no Perl, dpkg and so on in the image. Packages
// of apt.txt can be anything, so then they are installed for real.
func (j *job) makeBase(ctx context.Context, spec baseSpec) (_ string, err error) {
	packages := slices.Concat(commonPackages, spec.Packages, spec.Extra)
	j.Progress(fmt.Sprintf("Making the %s base image from %d Debian packages and what they need (once)", spec.Runtime, len(packages)))
	apt, err := j.aptSetup(ctx, spec.Suite)
	if err != nil {
		return "", err
	}
	root, out := filepath.Join(j.work, "root"), filepath.Join(j.work, "made")
	for _, d := range []string{root, out} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return "", err
	}
	if len(spec.Extra) > 0 {
		// A wrong name would only be found out after half of the work.
		j.Progress("Checking apt.txt")
		t := tool{name: "mmdebstrap", pkg: "mmdebstrap", log: j.Log, args: mmdebstrapArgs("extract", spec, apt, packages, "--simulate", "--format=null")}
		if err := j.runMmdebstrap(ctx, t); err != nil {
			return "", explainApt(err, spec.Extra)
		}
		j.Progress("Installing packages")
	}
	if err := j.mmdebstrap(ctx, spec, apt, packages, root); err != nil {
		return "", explainApt(err, spec.Extra)
	}
	j.Progress("Finishing the base image")
	version, err := j.finishBase(ctx, spec, root)
	if err != nil {
		return "", err
	}
	layer, err := packTree(ctx, root, filepath.Join(out, layerFile), epoch0)
	if err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(baseMeta{Spec: spec, Layer: layer.facts, Version: version, Made: time.Now().UTC()}, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(out, metaFile), b, 0o600); err != nil {
		return "", err
	}
	return out, removeTree(root)
}

// mmdebstrap streams a Debian root folder into root.
func (j *job) mmdebstrap(ctx context.Context, spec baseSpec, apt aptSetup, packages []string, root string) error {
	variant := "extract"
	if len(spec.Extra) > 0 {
		variant = "essential"
	}
	pr, pw := io.Pipe()
	t := tool{name: "mmdebstrap", pkg: "mmdebstrap", out: pw, log: j.Log,
		args: mmdebstrapArgs(variant, spec, apt, packages, "--format=tar")}
	unpacked := make(chan error, 1)
	go func() {
		err := unpackTree(ctx, pr, root, keepForBase(len(spec.Extra) == 0))
		if err == nil {
			_, err = io.Copy(io.Discard, pr) // padding after the end of the archive
		}
		pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		unpacked <- err
	}()
	err := j.runMmdebstrap(ctx, t)
	pw.CloseWithError(err) // nil: end of file
	if uerr := <-unpacked; uerr != nil && err == nil {
		return uerr
	}
	return err
}

func mmdebstrapArgs(variant string, spec baseSpec, apt aptSetup, packages []string, more ...string) []string {
	args := []string{
		"--variant=" + variant, "--architectures=" + spec.Arch, "--include=" + strings.Join(packages, ","),
		"--aptopt=" + apt.options, "--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
	}
	// Suite (the sources say it), target (standard output), sources.
	return slices.Concat(args, more, []string{"", "-"}, apt.sources)
}

func (j *job) runMmdebstrap(ctx context.Context, t tool) (err error) {
	t.env = []string{"SOURCE_DATE_EPOCH=0", "DEBIAN_FRONTEND=noninteractive"}
	if os.Geteuid() == 0 {
		// With its mounts in a namespace of their own and its files in our folder,
		// nothing is left of it even if it is killed. The folder is open to
		// apt's download user, whom the cache dir keeps out.
		tmp, terr := os.MkdirTemp("", "skep-build-")
		if terr != nil {
			return fmt.Errorf("make a temporary folder: %w", terr)
		}
		defer func() { err = errors.Join(err, removeTree(tmp)) }()
		if err := os.Chmod(tmp, 0o711); err != nil {
			return err
		}
		t.private = true
		t.env = append(t.env, "TMPDIR="+tmp)
	}
	return t.run(ctx)
}

var aptUnknown = regexp.MustCompile(`(?m)(?:Unable to locate package|Package '?|has no installation candidate.*?)\s*([a-z0-9][a-z0-9+.-]+)`)

// explainApt names the packages of apt.txt that apt complains about.
func explainApt(err error, extra []string) error {
	for _, m := range aptUnknown.FindAllStringSubmatch(outputOf(err), -1) {
		name := strings.TrimRight(m[1], ".")
		if slices.Contains(extra, name) {
			return fmt.Errorf("apt.txt: there is no package %s in this machine's Debian archives (if it is new, run apt-get update): %w", name, err)
		}
	}
	return err
}
