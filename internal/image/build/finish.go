package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/skep-dev/skep/internal/image/build/afterrestore"
)

// baseFiles are the same in every image. Sandboxes bring their own
// /etc/resolv.conf and /etc/hosts; these are the places for them.
var baseFiles = map[string]string{
	"etc/hostname":      "function\n",
	"etc/hosts":         "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
	"etc/resolv.conf":   "",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

const (
	passwd = "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	group  = "root:x:0:\nnogroup:x:65534:\n"

	nonrootUser  = "nonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin\n"
	nonrootGroup = "nonroot:x:65532:\n"
)

// skeleton makes the folders and files below root that every image has.
func skeleton(root string) error {
	for dir, mode := range map[string]fs.FileMode{
		"dev": 0o755, "etc": 0o755, "home": 0o755, "home/nonroot": 0o700, "proc": 0o555, "root": 0o700, "run": 0o755,
		"sys": 0o555, "tmp": 0o777 | fs.ModeSticky, "var": 0o755, "var/tmp": 0o777 | fs.ModeSticky,
	} {
		p := filepath.Join(root, dir)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(p, mode); err != nil {
			return err
		}
	}
	for name, text := range baseFiles {
		if err := writeFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// A base with installed packages has users; ours comes on top.
	if err := extend(filepath.Join(root, "etc/passwd"), passwd, nonrootUser); err != nil {
		return err
	}
	return extend(filepath.Join(root, "etc/group"), group, nonrootGroup)
}

func extend(path, initial, more string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = []byte(initial), nil
	}
	if err != nil {
		return err
	}
	return writeFile(path, append(b, more...), 0o644)
}

// applets are the busybox commands that programs start and people use to look
// around, where no package brings them.
var applets = []string{"cat", "chmod", "cp", "date", "df", "dirname", "basename", "du", "env", "expr", "false", "find", "free",
	"grep", "gunzip", "gzip", "head", "hostname", "id", "ip", "kill", "ln", "ls", "md5sum", "mkdir", "mktemp", "mv", "nc", "nproc",
	"printf", "ps", "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "sha256sum", "sleep", "sort", "stat", "tail", "tar", "tee",
	"test", "timeout", "top", "touch", "tr", "true", "uname", "uniq", "uptime", "vi", "wc", "wget", "which", "whoami", "xargs"}

// finishBase does what the packages' installation scripts would have done, and
// returns the version of the language.
func (j *job) finishBase(ctx context.Context, spec baseSpec, root string) (string, error) {
	if err := skeleton(root); err != nil {
		return "", err
	}
	if err := ensureLink(root, "usr/bin/sh", "dash"); err != nil {
		return "", err
	}
	for _, a := range applets {
		if err := ensureLink(root, "usr/bin/"+a, "busybox"); err != nil {
			return "", err
		}
	}
	if err := writeCertificates(root); err != nil {
		return "", err
	}
	if err := afterrestore.OpenSSL(root, library()); err != nil {
		return "", fmt.Errorf("OpenSSL: %w", err)
	}
	switch spec.Runtime {
	case Python:
		return j.finishPython(ctx, root)
	case Node:
		if _, err := os.Stat(filepath.Join(root, "usr/bin/node")); err != nil {
			return "", fmt.Errorf("base has no node: %w", err)
		}
		return "", afterrestore.Node(root)
	case Java:
		return j.finishJava(ctx, root)
	}
	return "", nil
}

// ensureLink makes the symbolic link name to target where there is nothing yet.
func ensureLink(root, name, target string) error {
	p := filepath.Join(root, name)
	if _, err := os.Lstat(p); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, p)
}

// library is the folder of a base's shared libraries, relative to its root.
func library() string {
	return filepath.Join("usr/lib", map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH])
}

var jvmDir = regexp.MustCompile(`^java-(\d+)-openjdk-`)

func (j *job) finishJava(ctx context.Context, root string) (string, error) {
	dirs, err := os.ReadDir(filepath.Join(root, "usr/lib/jvm"))
	if err != nil {
		return "", err
	}
	for _, d := range dirs {
		m := jvmDir.FindStringSubmatch(d.Name())
		if m == nil || !d.IsDir() {
			continue
		}
		if err := ensureLink(root, "usr/bin/java", "/usr/lib/jvm/"+d.Name()+"/bin/java"); err != nil {
			return "", err
		}
		if err := writeTrustStore(root); err != nil {
			return "", err
		}
		classes := filepath.Join(j.work, "skep-restore-classes")
		err := afterrestore.Java(root, filepath.Join(j.work, "skep-restore"), m[1], func(sources []string, dir, jar string) error {
			if err := j.compileJava(ctx, sources, dir, m[1], classes); err != nil {
				return err
			}
			manifest := "Manifest-Version: 1.0\nPremain-Class: dev.skep.restore.Agent\n" +
				"Can-Retransform-Classes: true\nBoot-Class-Path: " + filepath.Base(jar) + "\n"
			if err := writeFile(filepath.Join(classes, "META-INF", "MANIFEST.MF"), []byte(manifest), 0o644); err != nil {
				return err
			}
			return writeJar(classes, jar)
		})
		return m[1], err
	}
	return "", errors.New("base has no /usr/lib/jvm/java-*-openjdk-*")
}
