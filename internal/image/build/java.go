package build

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/image/build/afterrestore"
)

func (j *job) java(ctx context.Context) (_ recipe, err error) {
	_, perr := os.Stat(filepath.Join(j.Dir, "pom.xml"))
	sources, err := javaSources(j.Dir)
	if err != nil {
		return recipe{}, err
	}
	if perr != nil && len(sources) == 0 {
		return recipe{}, errors.New("no pom.xml and no *.java in the source folder")
	}
	b, err := j.base(ctx, []string{"default-jre-headless"})
	if err != nil {
		return recipe{}, err
	}
	defer closeOnError(b, &err)
	root, app, err := j.stage("app", appDir)
	if err != nil {
		return recipe{}, err
	}
	jar := filepath.Join(app, "function.jar")
	var main string
	if perr == nil {
		main, err = j.maven(ctx, jar, filepath.Join(app, "lib"))
	} else {
		main, err = j.javac(ctx, sources, b.version, jar)
	}
	if err != nil {
		return recipe{}, err
	}
	// A fixed list rather than lib/*, whose order the JVM does not promise.
	path := []string{"/" + appDir + "/function.jar"}
	libs, err := filepath.Glob(filepath.Join(globEscape(app), "lib", "*.jar"))
	if err != nil {
		return recipe{}, err
	}
	for _, l := range libs {
		path = append(path, "/"+appDir+"/lib/"+filepath.Base(l))
	}
	if err := levelModes(app); err != nil {
		return recipe{}, err
	}
	return j.layered(ctx, []staged{{root, "function"}}, b, recipe{
		env: []string{"LANG=C.UTF-8"},
		// A function has a core or less and little memory: the serial collector
		// starts fastest and needs the least.
		entrypoint: []string{"/usr/bin/java", "-XX:+UseSerialGC", "-XX:MaxRAMPercentage=70", "-Xshare:auto",
			afterrestore.JavaFlag, "-cp", strings.Join(path, ":"), main},
	})
}

// javaSources are the .java files below dir, relative to it.
func javaSources(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (slices.Contains(ignored, d.Name()) || d.Name() == "target") && path != dir {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".java" && d.Type().IsRegular() {
			if len(files) == maxSourceFiles {
				return fmt.Errorf("more than %d files", maxSourceFiles)
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			files = append(files, rel)
		}
		return nil
	})
	return files, err
}

var javaMain = regexp.MustCompile(`\bstatic\s+(?:final\s+)?void\s+main\s*\(|\bvoid\s+main\s*\(\s*(?:final\s+)?String`)
var javaPackage = regexp.MustCompile(`(?m)^\s*package\s+([A-Za-z_][\w.]*)\s*;`)

// mainClass picks the class to start: Main.java, or the only file that has a
// main method.
func mainClass(dir string, sources []string) (string, error) {
	var mains []string
	for _, s := range sources {
		b, err := os.ReadFile(filepath.Join(dir, s))
		if err != nil {
			return "", err
		}
		if !javaMain.Match(b) {
			continue
		}
		class := strings.TrimSuffix(filepath.Base(s), ".java")
		if m := javaPackage.FindSubmatch(b); m != nil {
			class = string(m[1]) + "." + class
		}
		if filepath.Base(s) == "Main.java" {
			return class, nil
		}
		mains = append(mains, class)
	}
	switch len(mains) {
	case 1:
		return mains[0], nil
	case 0:
		return "", errors.New("no class with a main method: want one, best in Main.java")
	}
	return "", fmt.Errorf("several classes with a main method (%s): name the one to start Main", strings.Join(mains, ", "))
}

// javac compiles the sources into a jar, along with the folder's other files.
func (j *job) javac(ctx context.Context, sources []string, release, jar string) (string, error) {
	main, err := mainClass(j.Dir, sources)
	if err != nil {
		return "", err
	}
	j.Progress("Compiling Java")
	classes := filepath.Join(j.work, "classes")
	if err := j.copySource(ctx, classes, append([]string{"apt.txt", "target"}, sources...)...); err != nil {
		return "", err
	}
	if err := j.compileJava(ctx, sources, j.Dir, release, classes); err != nil {
		return "", err
	}
	return main, writeJar(classes, jar)
}

// compileJava compiles sources, which are relative to dir, into classes.
func (j *job) compileJava(ctx context.Context, sources []string, dir, release, classes string) error {
	// Too many files for a command line. Names are relative, so no path of this
	// machine gets into messages or classes.
	var list strings.Builder
	for _, s := range sources {
		if strings.ContainsAny(s, "\"\\\n\r") {
			return fmt.Errorf("file name %q: quotes, backslashes and new lines cannot be given to javac", s)
		}
		fmt.Fprintf(&list, "\"%s\"\n", s)
	}
	args := classes + ".sources"
	if err := os.WriteFile(args, []byte(list.String()), 0o600); err != nil {
		return err
	}
	return tool{name: "javac", pkg: "default-jdk-headless", dir: dir, log: j.Log,
		args: []string{"--release", release, "-encoding", "UTF-8", "-proc:none", "-g:source,lines", "-d", classes, "@" + args}}.run(ctx)
}

// writeJar makes a jar of dir. It is not compressed, as layers are and the JVM
// then starts faster; times are the earliest a jar can have.
func writeJar(dir, jar string) (err error) {
	f, err := os.OpenFile(jar, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z := zip.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: filepath.ToSlash(rel), Method: zip.Store,
			Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)})
		if err != nil {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(w, in)
		return err
	})
	return errors.Join(err, z.Close())
}
