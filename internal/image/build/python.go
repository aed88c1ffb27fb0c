package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/skep-dev/skep/internal/image/build/afterrestore"
)

// depsDir is where a Python function's dependencies are in the image.
const depsDir = "opt/deps"

func (j *job) python(ctx context.Context) (_ recipe, err error) {
	if err := needFile(j.Dir, "main.py"); err != nil {
		return recipe{}, err
	}
	b, err := j.base(ctx, []string{"python3"})
	if err != nil {
		return recipe{}, err
	}
	defer closeOnError(b, &err)
	root, err := j.unpackBase(ctx, b)
	if err != nil {
		return recipe{}, err
	}
	py := interpreter{job: j, root: root, version: b.version}
	r := recipe{
		entrypoint: []string{"/usr/bin/python3", "-u", "/" + appDir + "/main.py"},
		// Nothing the function imports may change, so byte code is made now.
		env: []string{"LANG=C.UTF-8", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"},
	}
	var parts []staged
	if _, err := os.Stat(filepath.Join(j.Dir, "requirements.txt")); err == nil {
		j.Progress("Installing requirements.txt")
		depsRoot, deps, err := j.stage("deps", depsDir)
		if err != nil {
			return recipe{}, err
		}
		if err := py.install(ctx, deps); err != nil {
			return recipe{}, fmt.Errorf("requirements.txt: %w", err)
		}
		if err := py.compile(ctx, depsRoot, deps); err != nil {
			return recipe{}, err
		}
		parts = append(parts, staged{depsRoot, "requirements.txt"})
		r.env = append(r.env, "PYTHONPATH=/"+depsDir)
	}
	appRoot, app, err := j.stage("app", appDir)
	if err != nil {
		return recipe{}, err
	}
	if err := j.copySource(ctx, app); err != nil {
		return recipe{}, err
	}
	j.Progress("Compiling Python")
	if err := py.check(ctx, filepath.Join(app, "main.py")); err != nil {
		return recipe{}, err
	}
	if err := py.compile(ctx, appRoot, app); err != nil {
		return recipe{}, err
	}
	parts = append(parts, staged{appRoot, "function"})
	return j.layered(ctx, parts, b, r)
}

// closeOnError closes what a failed build will not hand over in its image.
func closeOnError(b *base, err *error) {
	if *err != nil {
		*err = errors.Join(*err, b.layer.close())
	}
}

func needFile(dir, name string) error {
	st, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("no %s in the source folder: it is where the function starts", name)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", name)
	}
	return nil
}

var pythonTarget = regexp.MustCompile(`^python(3\.\d+)$`)

func (j *job) finishPython(ctx context.Context, root string) (string, error) {
	target, err := os.Readlink(filepath.Join(root, "usr/bin/python3"))
	if err != nil {
		return "", fmt.Errorf("base has no python3: %w", err)
	}
	m := pythonTarget.FindStringSubmatch(filepath.Base(target))
	if m == nil {
		return "", fmt.Errorf("base has a /usr/bin/python3 that is %.80q, not a version of Python 3", target)
	}
	if err := afterrestore.Python(root); err != nil {
		return "", err
	}
	py := interpreter{job: j, root: root, version: m[1]}
	for _, lib := range []string{"usr/lib/python" + m[1], "usr/lib/python3"} {
		if _, err := os.Stat(filepath.Join(root, lib)); err != nil {
			continue
		}
		if err := py.compile(ctx, root, filepath.Join(root, lib)); err != nil {
			return "", err
		}
	}
	return m[1], nil
}

// interpreter is the Python of a base, run on this machine by the base's own
// dynamic loader: the right version for byte code and dependencies, whatever
// Python this machine has, and no need of chroot.
type interpreter struct {
	job     *job
	root    string // of the unpacked base
	version string
}

func (p interpreter) tool(pythonPath string, args ...string) (tool, error) {
	lib := filepath.Join(p.root, library())
	loaders, err := filepath.Glob(filepath.Join(globEscape(lib), "ld-linux-*.so.*"))
	if err != nil || len(loaders) == 0 {
		return tool{}, fmt.Errorf("base has no dynamic loader in %s", library())
	}
	return tool{name: loaders[0], pkg: "libc6", log: p.job.Log,
		args: append([]string{"--library-path", lib, filepath.Join(p.root, "usr/bin/python"+p.version)}, args...),
		env: []string{"PYTHONHOME=" + filepath.Join(p.root, "usr"), "PYTHONPATH=" + pythonPath, "PYTHONNOUSERSITE=1",
			"PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0", "PYTHONSTARTUP=", "PYTHONWARNINGS=", "PYTHONOPTIMIZE="}}, nil
}

// compile makes byte code for all below dir, that will be found at the same
// place relative to root in the image. It is never checked against its source at
// run time, so file times do not matter. What does not compile is left to fail
// when it is imported, if it ever is.
func (p interpreter) compile(ctx context.Context, root, dir string) error {
	t, err := p.tool("", "-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
		"-s", root, "-p", "/", dir)
	if err != nil {
		return err
	}
	if err := t.run(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		fmt.Fprintf(p.job.Log, "some files below %s do not compile\n", strings.TrimPrefix(dir, root))
	}
	return levelModes(dir)
}

// check compiles one file and reports what is wrong with it.
func (p interpreter) check(ctx context.Context, file string) error {
	t, err := p.tool("", "-c", "import sys; compile(open(sys.argv[1], 'rb').read(), 'main.py', 'exec')", file)
	if err != nil {
		return err
	}
	return t.run(ctx)
}

// install puts what requirements.txt asks for into dir.
func (p interpreter) install(ctx context.Context, dir string) error {
	pip, err := p.pip(ctx)
	if err != nil {
		return err
	}
	args := []string{"-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-compile",
		"--no-warn-script-location", "--root-user-action=ignore", "--target", dir, "-r", "requirements.txt"}
	if !p.job.AllowScripts {
		args = append(args, "--only-binary=:all:")
	}
	t, err := p.tool(pip, args...)
	if err != nil {
		return err
	}
	t.dir = p.job.Dir
	if err := t.run(ctx); err != nil {
		return err
	}
	return dropBuildTraces(dir)
}

// dropBuildTraces removes what names this machine's folders: scripts that start
// with the path of the interpreter that installed them, and lists of checksums.
func dropBuildTraces(dir string) error {
	gone := []string{filepath.Join(dir, "bin")}
	for _, name := range []string{"RECORD", "direct_url.json"} {
		m, err := filepath.Glob(filepath.Join(globEscape(dir), "*.dist-info", name))
		if err != nil {
			return err
		}
		gone = append(gone, m...)
	}
	for _, g := range gone {
		if err := os.RemoveAll(g); err != nil {
			return err
		}
	}
	return nil
}

// pip finds this machine's pip, which is plain Python, and returns what to put
// on PYTHONPATH to run it with the base's interpreter.
func (p interpreter) pip(ctx context.Context) (string, error) {
	if m, err := filepath.Glob("/usr/share/python-wheels/pip-*.whl"); err == nil && len(m) > 0 {
		return m[len(m)-1], nil
	}
	var out strings.Builder
	t := tool{name: "python3", pkg: "python3-pip", out: &out, log: p.job.Log,
		args: []string{"-c", "import os, pip; print(os.path.dirname(pip.__file__))"}}
	if err := t.run(ctx); err != nil {
		return "", fmt.Errorf("pip is not installed: apt-get install python3-pip: %w", err)
	}
	// Alone in a folder, so that nothing else of this machine's Python gets in.
	dir := filepath.Join(p.job.work, "pip")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, os.Symlink(strings.TrimSpace(out.String()), filepath.Join(dir, "pip"))
}
