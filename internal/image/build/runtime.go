package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Runtime is a language images can be built for.
type Runtime string

// The runtimes.
const (
	Go     Runtime = "go"
	Python Runtime = "python3"
	Node   Runtime = "node"
	Java   Runtime = "java"
)

// Runtimes lists the names ParseRuntime takes.
func Runtimes() []string {
	return []string{string(Go), string(Python), string(Node), string(Java)}
}

// ParseRuntime reads a runtime's name; common other names are understood.
func ParseRuntime(s string) (Runtime, error) {
	switch strings.ToLower(s) {
	case "go", "golang":
		return Go, nil
	case "python3", "python":
		return Python, nil
	case "node", "nodejs":
		return Node, nil
	case "java":
		return Java, nil
	}
	return "", fmt.Errorf("unknown runtime %q: want %s", s, strings.Join(Runtimes(), ", "))
}

// signs are the files that give a runtime away. Those that declare a project
// come before mere source files: a Go project may well hold a script.
var signs = []struct {
	runtime Runtime
	sure    []string
	maybe   string
}{
	{Go, []string{"go.mod"}, "*.go"},
	{Python, []string{"requirements.txt", "main.py"}, "*.py"},
	{Node, []string{"package.json", "index.js", "index.mjs"}, "*.js"},
	{Java, []string{"pom.xml", "Main.java"}, "*.java"},
}

// DetectRuntime finds the runtime from the files of dir, not from its
// sub-folders.
func DetectRuntime(dir string) (Runtime, error) {
	if _, err := os.ReadDir(dir); err != nil {
		return "", fmt.Errorf("detect runtime: %w", err)
	}
	for _, pass := range []func(i int) (string, bool){
		func(i int) (string, bool) { return firstFile(dir, signs[i].sure) },
		func(i int) (string, bool) {
			m, err := filepath.Glob(filepath.Join(globEscape(dir), signs[i].maybe))
			if err != nil || len(m) == 0 {
				return "", false
			}
			return filepath.Base(m[0]), true
		},
	} {
		var found []Runtime
		var files []string
		for i, s := range signs {
			if f, ok := pass(i); ok {
				found, files = append(found, s.runtime), append(files, f)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return "", fmt.Errorf("detect runtime of %s: %s point to different runtimes (%v): say which one", dir, strings.Join(files, " and "), found)
		}
	}
	return "", fmt.Errorf("detect runtime of %s: no go.mod, requirements.txt, *.py, package.json, *.js, pom.xml or *.java in it", dir)
}

func firstFile(dir string, names []string) (string, bool) {
	for _, n := range names {
		if st, err := os.Stat(filepath.Join(dir, n)); err == nil && st.Mode().IsRegular() {
			return n, true
		}
	}
	return "", false
}

// globEscape keeps the characters of a folder's name from acting as a pattern.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
