// Package runtimes holds the programs that run in the guests of SnapFaaS's
// tools, one a language. They are the guest's side of package guest.
package runtimes

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed main.py index.js SkepRuntime.java golang/main.go
var files embed.FS

// Names lists the languages, in the spelling of the tools.
func Names() []string { return []string{"python3", "nodejs", "go", "java"} }

// sources are what build wants to find in a folder of source.
var sources = map[string]map[string]string{
	"python3": {"main.py": "main.py"},
	"nodejs":  {"index.js": "index.js"},
	"java":    {"SkepRuntime.java": "SkepRuntime.java"},
	"go":      {"main.go": "golang/main.go"},
}

// goMod makes the Go program a module of its own.
const goMod = "module skep-runtime\n\ngo 1.24\n"

// Source returns the source of a language's program: file names and contents.
func Source(name string) (map[string][]byte, error) {
	list, ok := sources[name]
	if !ok {
		return nil, fmt.Errorf("unknown runtime %q: want %s", name, strings.Join(Names(), ", "))
	}
	out := map[string][]byte{}
	for file, from := range list {
		b, err := files.ReadFile(from)
		if err != nil {
			return nil, err
		}
		out[file] = b
	}
	if name == "go" {
		out["go.mod"] = []byte(goMod)
	}
	return out, nil
}
