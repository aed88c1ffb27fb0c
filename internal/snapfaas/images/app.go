package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/image/build"
	"github.com/skep-dev/skep/internal/image/erofs"
	"github.com/skep-dev/skep/internal/snapfaas/runtimes"
)

// AppOptions of BuildApp.
type AppOptions struct {
	Options
	// Dir is the app's folder. It is only read.
	Dir string
	// Runtime is one of runtimes.Names; "" finds it out.
	Runtime string
}

// BuildApp makes an app image: the folder's files, with what its
// requirements.txt or package.json asks for in package or node_modules, its
// Java compiled to a jar, its Go to the program workload.
func BuildApp(ctx context.Context, o AppOptions) error {
	return o.write(ctx, func(b *erofs.Builder) error { return o.addApp(ctx, b, o.Dir, o.Runtime, "") })
}

// WriteEmpty makes the placeholder: an app image without an app, so that
// there is a disk which a snapshot can be taken with.
func WriteEmpty(ctx context.Context, o Options) error {
	return o.write(ctx, func(*erofs.Builder) error { return nil })
}

// addApp adds the app in dir below prefix, "" or "srv/".
func (o Options) addApp(ctx context.Context, b *erofs.Builder, dir, runtime, prefix string) error {
	p, err := planApp(dir, runtime)
	if err != nil {
		return err
	}
	if p.stub == nil {
		return addFolder(ctx, b, dir, prefix)
	}
	return o.addBuilt(ctx, b, dir, prefix, p)
}

// plan is how an app is built.
type plan struct {
	runtime build.Runtime
	// stub are files that package build needs to see besides the app's; nil
	// if the app is copied as it is.
	stub map[string]string
	// bases is the number of layers that belong to the runtime image.
	bases int
}

// javaStub is the main class that package build asks for.
const javaStub = "final class SkepMain { public static void main(String[] args) {} }\n"

// planApp decides from the folder's files.
func planApp(dir, runtime string) (plan, error) {
	if _, ok := languages[runtime]; !ok && runtime != "" {
		return plan{}, fmt.Errorf("unknown runtime %q: want %s", runtime, strings.Join(runtimes.Names(), ", "))
	}
	if st, err := os.Stat(dir); err != nil {
		return plan{}, fmt.Errorf("app folder: %w", err)
	} else if !st.IsDir() {
		return plan{}, fmt.Errorf("app folder: %s is not a folder", dir)
	}
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool {
			m, err := filepath.Glob(filepath.Join(strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir), n))
			return err == nil && len(m) > 0
		})
	}
	if has("apt.txt") {
		return plan{}, errors.New("apt.txt: Debian packages belong to the runtime image: skep runtime build --package NAME")
	}
	var found []string
	for _, l := range []struct {
		name  string
		signs []string
	}{
		{"python3", []string{"workload.py", "workload/__init__.py"}},
		{"nodejs", []string{"workload.js", "workload.cjs", "workload/index.js"}},
		{"java", []string{"Workload.java", "Workload.class", "pom.xml", "*.jar"}},
		{"go", []string{"go.mod", "workload"}},
	} {
		if has(l.signs...) && (runtime == "" || runtime == l.name) {
			found = append(found, l.name)
		}
	}
	switch {
	case len(found) == 0 && runtime == "":
		return plan{}, fmt.Errorf("app folder %s: no workload.py, workload.js, Workload.java, *.jar, go.mod or workload in it", dir)
	case len(found) == 0:
		return plan{}, fmt.Errorf("app folder %s: nothing in it is an app for %s", dir, runtime)
	case len(found) > 1:
		return plan{}, fmt.Errorf("app folder %s: it may be for %s: say which with --runtime", dir, strings.Join(found, " or "))
	}
	p := plan{runtime: languages[found[0]], bases: 1}
	switch found[0] {
	case "python3":
		if has("requirements.txt") {
			p.stub = map[string]string{"main.py": "import workload\n"}
		}
	case "nodejs":
		if has("package.json") {
			p.stub = map[string]string{"index.js": "require('./workload');\n"}
		}
	case "java":
		if has("*.java", "pom.xml") {
			p.stub = map[string]string{"SkepMain.java": javaStub}
		}
		if has("pom.xml") {
			p.stub = map[string]string{} // Maven's project says itself what it is
		}
	case "go":
		if has("go.mod") {
			p.stub = map[string]string{}
		}
	}
	return p, nil
}

// addBuilt builds the app with package build, and adds what is not the base.
func (o Options) addBuilt(ctx context.Context, b *erofs.Builder, dir, prefix string, p plan) (err error) {
	stage, err := os.MkdirTemp("", "skep-app-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	copied := filepath.Join(stage, "app")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		return fmt.Errorf("app folder: %w", err)
	}
	for name, text := range p.stub {
		f, err := os.OpenFile(filepath.Join(copied, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, text)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	opts := o.toBuild(copied, p.runtime)
	opts.JavaMain = "Workload" // it is not started: the runtime loads it
	img, err := build.Build(ctx, opts)
	if err != nil {
		return fmt.Errorf("build the app: %w", err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	return addLayers(ctx, b, img, p.bases, func(name string) (string, bool) {
		switch {
		case p.runtime == build.Go && name == "app/function":
			return prefix + "workload", true
		case strings.HasPrefix(name, "app/"):
			return prefix + strings.TrimPrefix(name, "app/"), true
		case name == "opt/deps" || strings.HasPrefix(name, "opt/deps/"):
			return prefix + "package" + strings.TrimPrefix(name, "opt/deps"), true
		}
		return "", false
	})
}

// Limits of an app's folder.
const (
	maxFiles = 100_000
	maxBytes = 2 << 30
)

// ignored never get into an image, as in package build.
var ignored = []string{".git", ".hg", ".svn", ".DS_Store", ".env", ".venv", "venv", "__pycache__"}

// addFolder adds a folder as it is, with plain owners, modes and times.
func addFolder(ctx context.Context, b *erofs.Builder, dir, prefix string) error {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(packFolder(ctx, pw, dir, prefix)) }()
	err := b.AddLayer(ctx, pr)
	pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	return err
}

func packFolder(ctx context.Context, w io.Writer, dir, prefix string) error {
	out := tar.NewWriter(w)
	files, bytes := 0, int64(0)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		if slices.Contains(ignored, d.Name()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if files++; files > maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if bytes += st.Size(); d.Type().IsRegular() && bytes > maxBytes {
			return fmt.Errorf("more than %d bytes", int64(maxBytes))
		}
		return packFile(out, path, prefix+rel, st)
	})
	if err != nil {
		return fmt.Errorf("app folder: %w", err)
	}
	return out.Close()
}

func packFile(out *tar.Writer, path, name string, st fs.FileInfo) error {
	h := tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if st.IsDir() || st.Mode()&0o111 != 0 {
		h.Mode = 0o755
	}
	switch st.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return out.WriteHeader(&h)
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, target, 0o777
		return out.WriteHeader(&h)
	case 0:
	default:
		return fmt.Errorf("%s is a %s: only files, folders and symbolic links can be in an image", name, st.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := out.WriteHeader(&h); err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(f, st.Size()))
	return err
}
