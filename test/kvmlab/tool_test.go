package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFindTool(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "skep-a-tool")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for _, own := range []string{t.TempDir(), dir} {
		if p, err := findTool(own, "skep-a-tool"); err != nil || p != path {
			t.Errorf("with %s: %q, %v", own, p, err)
		}
	}
	t.Setenv("PATH", "/none")
	if p, err := findTool(dir, "skep-a-tool"); err != nil || p != path {
		t.Errorf("where skep setup puts it: %q, %v", p, err)
	}
	if _, err := findTool("/none", "skep-a-tool"); err == nil {
		t.Error("a tool that is not there was found")
	}
}
