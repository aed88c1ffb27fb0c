package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/image/build/afterrestore"
)

// golang links the function statically and puts it alone on an empty base.
func (j *job) golang(ctx context.Context) (recipe, error) {
	if err := j.checkGo(); err != nil {
		return recipe{}, err
	}
	baseRoot, _, err := j.stage("base", ".")
	if err != nil {
		return recipe{}, err
	}
	if err := skeleton(baseRoot); err != nil {
		return recipe{}, fmt.Errorf("make base: %w", err)
	}
	certs, err := bundle("/")
	if err != nil {
		return recipe{}, fmt.Errorf("make base: %w", err)
	}
	if err := writeFile(filepath.Join(baseRoot, bundlePath), certs, 0o644); err != nil {
		return recipe{}, fmt.Errorf("make base: %w", err)
	}
	appRoot, bin, err := j.stage("app", appDir)
	if err != nil {
		return recipe{}, err
	}
	j.Progress("Compiling Go")
	pkg := j.GoPackage
	if pkg == "" {
		pkg = "."
	}
	binary := filepath.Join(bin, "function")
	overlay, err := j.goOverlay(ctx)
	if err != nil {
		return recipe{}, err
	}
	args := slices.Concat([]string{"build", "-trimpath"}, overlay, []string{"-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", binary, pkg})
	if err := j.goTool(args...).run(ctx); err != nil {
		return recipe{}, err
	}
	// go build writes an archive for a package that is no program.
	if head, err := readHead(binary, 4); err != nil || string(head) != "\x7fELF" {
		return recipe{}, fmt.Errorf("package %s is not a program: want package main with a func main", pkg)
	}
	if err := os.Chmod(binary, 0o755); err != nil {
		return recipe{}, err
	}
	return j.layered(ctx, []staged{{baseRoot, "empty base"}, {appRoot, "function"}}, nil,
		recipe{entrypoint: []string{"/" + appDir + "/function"}})
}

func (j *job) goTool(args ...string) tool {
	return tool{name: "go", pkg: "golang-go", dir: j.Dir, log: j.Log, args: args,
		env: append(j.goEnv(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)}
}

// goOverlay returns the arguments that have go build add to the standard
// library what makes clones differ. A Go release that it does not fit is used
// without it.
func (j *job) goOverlay(ctx context.Context) ([]string, error) {
	var root strings.Builder
	env := j.goTool("env", "GOROOT") // of the release that go.mod asks for
	env.out = &root
	if err := env.run(ctx); err != nil {
		return nil, err
	}
	file, err := afterrestore.Go(strings.TrimSpace(root.String()), filepath.Join(j.work, "overlay"))
	if err != nil {
		return nil, fmt.Errorf("overlay for the standard library: %w", err)
	}
	args := []string{"-trimpath", "-overlay=" + file}
	if err := j.goTool(slices.Concat([]string{"build"}, args, afterrestore.GoPackages)...).run(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		fmt.Fprintf(j.Log, "This Go release is not known: clones of a snapshot will share the state of math/rand and the names of temporary files. %v\n", err)
		return nil, nil
	}
	return args[1:], nil
}

func (j *job) checkGo() error {
	if _, err := os.Stat(filepath.Join(j.Dir, "apt.txt")); err == nil {
		return errors.New("apt.txt: images of runtime go have no Debian packages; remove the file or use another runtime")
	}
	if strings.HasPrefix(j.GoPackage, "-") {
		return fmt.Errorf("package %q: want a path such as ./cmd/server", j.GoPackage)
	}
	for d := j.Dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return nil
		}
		if d == filepath.Dir(d) {
			return fmt.Errorf("no go.mod in %s or above: run go mod init", j.Dir)
		}
	}
}

// goEnv gives Go its caches where a service manager left out $HOME.
func (j *job) goEnv() []string {
	if os.Getenv("HOME") != "" || os.Getenv("GOCACHE") != "" {
		return nil
	}
	dir := filepath.Join(j.CacheDir, "go")
	return []string{"GOCACHE=" + filepath.Join(dir, "build"), "GOPATH=" + dir}
}

func readHead(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	k, err := f.Read(b)
	return b[:k], err
}

// staged is a folder that becomes a layer.
type staged struct{ root, note string }

// layered packs the staged folders on top of base (if any) and completes r.
func (j *job) layered(ctx context.Context, parts []staged, b *base, r recipe) (_ recipe, err error) {
	j.Progress("Packing the image")
	if b != nil {
		r.layers, r.notes = append(r.layers, b.layer), append(r.notes, "Debian base")
	}
	for _, s := range parts {
		l, err := j.pack(ctx, s.root)
		if err != nil {
			return recipe{}, err
		}
		r.layers, r.notes = append(r.layers, l), append(r.notes, s.note)
		if err := removeTree(s.root); err != nil {
			return recipe{}, err
		}
	}
	return r, nil
}
