package build

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maven packages a project, copies its jar to jar and the jars it needs into
// lib, and returns its main class.
func (j *job) maven(ctx context.Context, jar, lib string) (string, error) {
	j.Progress("Running Maven")
	project := filepath.Join(j.work, "maven")
	if err := j.copySource(ctx, project, "target"); err != nil {
		return "", err
	}
	deps := filepath.Join(j.work, "maven-deps")
	err := tool{name: "mvn", pkg: "maven", dir: project, log: j.Log, args: []string{
		"--batch-mode", "--no-transfer-progress", "-DskipTests", "-Dproject.build.outputTimestamp=1980-01-01T00:00:02Z",
		"package", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=" + deps}}.run(ctx)
	if err != nil {
		return "", fmt.Errorf("pom.xml: %w", err)
	}
	made, err := packagedJar(filepath.Join(project, "target"))
	if err != nil {
		return "", err
	}
	main, err := manifestMain(made)
	if errors.Is(err, errNoMain) && j.JavaMain != "" {
		main, err = j.JavaMain, nil
	}
	if err != nil {
		return "", err
	}
	if _, err := copyFile(made, jar, maxUnpacked); err != nil {
		return "", err
	}
	jars, err := filepath.Glob(filepath.Join(globEscape(deps), "*.jar"))
	if err != nil || len(jars) == 0 {
		return main, err
	}
	if err := os.Mkdir(lib, 0o755); err != nil {
		return "", err
	}
	for _, d := range jars {
		if _, err := copyFile(d, filepath.Join(lib, filepath.Base(d)), maxUnpacked); err != nil {
			return "", err
		}
	}
	return main, nil
}

// packagedJar is the one jar in Maven's target folder that is the program.
func packagedJar(target string) (string, error) {
	all, err := filepath.Glob(filepath.Join(globEscape(target), "*.jar"))
	if err != nil {
		return "", err
	}
	var jars []string
	for _, f := range all {
		n := filepath.Base(f)
		if !strings.HasPrefix(n, "original-") && !strings.HasSuffix(n, "-sources.jar") && !strings.HasSuffix(n, "-javadoc.jar") && !strings.HasSuffix(n, "-tests.jar") {
			jars = append(jars, f)
		}
	}
	if len(jars) != 1 {
		return "", fmt.Errorf("pom.xml: want it to package one jar, it made %d in target", len(jars))
	}
	return jars[0], nil
}

const maxManifest = 64 << 10 // bytes

// manifestMain reads a jar's Main-Class.
func manifestMain(jar string) (string, error) {
	z, err := zip.OpenReader(jar)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(jar), err)
	}
	defer z.Close()
	f, err := z.Open("META-INF/MANIFEST.MF")
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(jar), err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return "", fmt.Errorf("%s: manifest: %w", filepath.Base(jar), err)
	}
	return parseManifestMain(string(b))
}

func parseManifestMain(s string) (string, error) {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	s = strings.ReplaceAll(s, "\n ", "") // long lines go on after a space
	for _, line := range strings.Split(s, "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(k, "Main-Class") {
			v = strings.TrimSpace(v)
			if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' }) || strings.HasPrefix(v, "-") {
				return "", fmt.Errorf("pom.xml: the jar's Main-Class %.80q is not the name of a class", v)
			}
			return v, nil
		}
	}
	return "", errNoMain
}

var errNoMain = errors.New("pom.xml: the jar has no Main-Class: configure maven-jar-plugin's archive.manifest.mainClass")
