package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/internal/image/build/afterrestore"
)

// packageJSON is what matters here of a Node.js project's manifest.
type packageJSON struct {
	Main         string                     `json:"main"`
	Scripts      map[string]json.RawMessage `json:"scripts"`
	Dependencies map[string]json.RawMessage `json:"dependencies"`
	Optional     map[string]json.RawMessage `json:"optionalDependencies"`
}

const maxPackageJSON = 1 << 20 // bytes

func readPackageJSON(dir string) (*packageJSON, error) {
	p := &packageJSON{}
	b, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) > maxPackageJSON {
		return nil, fmt.Errorf("package.json is larger than %d bytes", maxPackageJSON)
	}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("package.json: %w", err)
	}
	return p, nil
}

// command is how the function starts: scripts.start if that is node with plain
// arguments (there is no npm in the image, and no shell is asked), else main,
// else index.js.
func (p *packageJSON) command(dir string) ([]string, error) {
	var start string
	if raw, ok := p.Scripts["start"]; ok {
		if err := json.Unmarshal(raw, &start); err != nil {
			return nil, fmt.Errorf("package.json: scripts.start: %w", err)
		}
		f := strings.Fields(start)
		if len(f) < 2 || f[0] != "node" || strings.ContainsAny(start, "|&;<>()$`\\\"'*?[]{}~#=%!\n") {
			return nil, fmt.Errorf("package.json: scripts.start is %.80q: want \"node FILE\" with plain arguments, or leave it out and set \"main\"", start)
		}
		return append([]string{"/usr/bin/node", afterrestore.NodeFlag}, f[1:]...), nil
	}
	for _, n := range []string{p.Main, "index.js", "index.mjs", "index.cjs", "server.js"} {
		if n == "" {
			continue
		}
		n = filepath.Clean(n)
		if filepath.IsLocal(n) {
			if st, err := os.Stat(filepath.Join(dir, n)); err == nil && st.Mode().IsRegular() {
				return []string{"/usr/bin/node", afterrestore.NodeFlag, "/" + filepath.Join(appDir, n)}, nil
			}
		}
		if n == filepath.Clean(p.Main) {
			return nil, fmt.Errorf("package.json: main: there is no file %.80q in the source folder", p.Main)
		}
	}
	return nil, errors.New("nothing to start: want \"main\" or \"scripts.start\" in package.json, or a file index.js")
}

func (j *job) node(ctx context.Context) (_ recipe, err error) {
	manifest, err := readPackageJSON(j.Dir)
	if err != nil {
		return recipe{}, err
	}
	command, err := manifest.command(j.Dir)
	if err != nil {
		return recipe{}, err
	}
	b, err := j.base(ctx, []string{"nodejs"})
	if err != nil {
		return recipe{}, err
	}
	defer closeOnError(b, &err)
	var parts []staged
	if len(manifest.Dependencies)+len(manifest.Optional) > 0 {
		root, err := j.npm(ctx)
		if err != nil {
			return recipe{}, err
		}
		parts = append(parts, staged{root, "package.json"})
	}
	appRoot, app, err := j.stage("app", appDir)
	if err != nil {
		return recipe{}, err
	}
	if err := j.copySource(ctx, app); err != nil {
		return recipe{}, err
	}
	parts = append(parts, staged{appRoot, "function"})
	return j.layered(ctx, parts, b, recipe{entrypoint: command, env: []string{"NODE_ENV=production"}})
}

// npm installs the dependencies and returns the staged folder with them. With a
// lock file exactly that is installed.
func (j *job) npm(ctx context.Context) (string, error) {
	j.Progress("Installing package.json's dependencies")
	root, app, err := j.stage("deps", appDir)
	if err != nil {
		return "", err
	}
	project := filepath.Join(j.work, "npm")
	if err := j.copySource(ctx, project); err != nil {
		return "", err
	}
	verb := "install"
	if _, ok := firstFile(project, []string{"package-lock.json", "npm-shrinkwrap.json"}); ok {
		verb = "ci"
	}
	t := tool{name: "npm", pkg: "npm", dir: project, log: j.Log,
		args: []string{verb, "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--install-links"}}
	if !j.AllowScripts {
		t.args = append(t.args, "--ignore-scripts")
	}
	if os.Getenv("HOME") == "" {
		t.env = []string{"HOME=" + filepath.Join(j.CacheDir, "npm")}
	}
	if err := t.run(ctx); err != nil {
		return "", fmt.Errorf("package.json: %w", err)
	}
	modules := filepath.Join(app, "node_modules")
	if err := os.Rename(filepath.Join(project, "node_modules"), modules); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return root, nil // only optional ones, none for this machine
	}
	return root, levelModes(modules)
}
