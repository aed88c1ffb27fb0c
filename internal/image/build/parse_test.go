package build

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseAptFile(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string
		err  string
	}{
		{in: ""},
		{in: "# nothing\n\n"},
		{in: "python3-numpy # arrays\r\nlibstdc++6 jq\njq\n", want: []string{"jq", "libstdc++6", "python3-numpy"}},
		{in: "a,b", err: "line 1"},
		{in: "jq=1.6", err: "line 1"},
		{in: "ok\nUpper", err: "line 2"},
		{in: "?essential", err: "line 1"},
		{in: "./x.deb", err: "line 1"},
		{in: "../x", err: "line 1"},
		{in: "x", err: "line 1"},
		{in: "$(reboot)", err: "line 1"},
		{in: strings.Repeat("#", maxAptFile+1), err: "larger"},
	} {
		got, err := parseAptFile(strings.NewReader(tc.in))
		if !slices.Equal(got, tc.want) || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%.40q: %v, %v; want %v, %q", tc.in, got, err, tc.want, tc.err)
		}
	}
}

func TestParseIndexTargets(t *testing.T) {
	got := parseIndexTargets([]byte(strings.Join([]string{
		"Debian\thttp://one.example/debian/\tbookworm\tmain",
		"Debian\thttp://one.example/debian/\tbookworm-updates\tmain",
		"Debian\thttp://one.example/security/\tbookworm-security\tmain",
		"Debian Backports\thttp://one.example/debian/\tbookworm-backports\tmain",
		"Debian\thttp://one.example/debian/\tsid\tmain",
		"Docker\thttp://two.example/\tbookworm\tstable",
		"Debian\thttp://one.example/x y\tbookworm\tmain",
		"short", "",
	}, "\n")), "bookworm")
	want := []archive{
		{"Debian", "http://one.example/debian/", "bookworm", "main"},
		{"Debian", "http://one.example/debian/", "bookworm-updates", "main"},
		{"Debian", "http://one.example/security/", "bookworm-security", "main"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseManifestMain(t *testing.T) {
	for _, tc := range []struct{ in, want, err string }{
		{in: "Manifest-Version: 1.0\r\nMain-Class: x.Web\r\n", want: "x.Web"},
		{in: "Main-Class: a.very.long\n .Name\n", want: "a.very.long.Name"},
		{in: "Manifest-Version: 1.0\n", err: "no Main-Class"},
		{in: "Main-Class: -javaagent:x\n", err: "not the name"},
		{in: "Main-Class: x y\n", err: "not the name"},
	} {
		got, err := parseManifestMain(tc.in)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: %q, %v; want %q, %q", tc.in, got, err, tc.want, tc.err)
		}
	}
}

func TestMainClass(t *testing.T) {
	for _, tc := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"Main.java": "class Main { public static void main(String[] a) {} }", "Other.java": "class Other { static void main(String[] a) {} }"}, "Main"},
		{map[string]string{"src/a/App.java": "package a;\nclass App { public static void main(String... a) {} }", "src/a/B.java": "package a; class B {}"}, "a.App"},
		{map[string]string{"A.java": "class A { static void main(String[] a) {} }", "B.java": "class B { static void main(String[] a) {} }"}, ""},
		{map[string]string{"A.java": "class A {}"}, ""},
	} {
		dir := folder(t, tc.files)
		sources, err := javaSources(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := mainClass(dir, sources); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%v: %q, %v; want %q", sources, got, err, tc.want)
		}
	}
}

func TestExcerpt(t *testing.T) {
	e := &excerpt{}
	for range 100 {
		if _, err := e.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(e, "the end\xff"); err != nil {
		t.Fatal(err)
	}
	if s := e.String(); len(s) > 2*maxToolOutput+20 || !strings.HasSuffix(s, "the end?") || !strings.Contains(s, "[...]") {
		t.Errorf("%d bytes, ending in %q", len(s), s[len(s)-20:])
	}
}

type entry struct {
	name, link string
	kind       byte
	mode       int64
}

func makeTar(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode}
		if e.kind == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := io.WriteString(w, "text"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpackTree(t *testing.T) {
	dir := t.TempDir()
	err := unpackTree(context.Background(), bytes.NewReader(makeTar(t, []entry{
		{"./", "", tar.TypeDir, 0o755},
		{"./lib64/", "", tar.TypeDir, 0o755},
		{"./lib64/ld.so", "/lib/x/ld.so", tar.TypeSymlink, 0o777},
		{"./bin/su", "", tar.TypeReg, 0o4755},
		{"./bin/sg", "bin/su", tar.TypeLink, 0o4755},
		{"./secret/", "", tar.TypeDir, 0o500},
		{"./secret/file", "", tar.TypeReg, 0o400},
		{"./tmp/", "", tar.TypeDir, 0o1777},
		{"./dev/null", "", tar.TypeChar, 0o666},
	})), dir, keepAll)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{
		"usr/bin/su": 0o755, "usr/bin/sg": 0o755, "secret": 0o500 | os.ModeDir, "secret/file": 0o400,
		"tmp": 0o777 | os.ModeDir | os.ModeSticky, "bin": 0o777 | os.ModeSymlink, "lib64": 0o777 | os.ModeSymlink, "usr/lib64/ld.so": 0o777 | os.ModeSymlink,
	} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, st, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "dev/null")); err == nil {
		t.Error("a device came along")
	}
	for _, bad := range [][]entry{
		{{"out", "/", tar.TypeSymlink, 0o777}, {"out/x", "", tar.TypeReg, 0o644}},
		{{"up", "../..", tar.TypeSymlink, 0o777}, {"up/x", "", tar.TypeReg, 0o644}},
		{{"a", "", tar.TypeReg, 0o644}, {"a", "", tar.TypeReg, 0o644}},
		{{"x", "../../../etc/hostname", tar.TypeLink, 0o644}},
	} {
		if err := unpackTree(context.Background(), bytes.NewReader(makeTar(t, bad)), t.TempDir(), keepAll); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func FuzzParseAptFile(f *testing.F) {
	f.Add([]byte("python3-numpy # x\njq"))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := parseAptFile(bytes.NewReader(b))
		for _, n := range names {
			if err != nil || strings.ContainsAny(n, " ,=/:?~\n") || n[0] == '-' {
				t.Errorf("%q from %q (%v)", n, b, err)
			}
		}
	})
}

func FuzzParseIndexTargets(f *testing.F) {
	f.Add("Debian\thttp://one.example/debian/\tbookworm\tmain\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, a := range parseIndexTargets([]byte(s), "bookworm") {
			if strings.ContainsAny(a.uri+a.suite+a.component, "\n\t ") {
				t.Errorf("%q gives %q", s, a)
			}
		}
	})
}

func FuzzParseManifestMain(f *testing.F) {
	f.Add("Main-Class: x.Web\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := parseManifestMain(s); err == nil && (c == "" || c[0] == '-' || strings.ContainsAny(c, " \n\t")) {
			t.Errorf("%q gives %q", s, c)
		}
	})
}

func FuzzPackageJSON(f *testing.F) {
	f.Add([]byte(`{"main":"web.js","scripts":{"start":"node web.js"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := folder(t, map[string]string{"package.json": string(b), "web.js": ""})
		p, err := readPackageJSON(dir)
		if err != nil {
			return
		}
		if c, err := p.command(dir); err == nil && (len(c) < 2 || c[0] != "/usr/bin/node") {
			t.Errorf("%q gives %q", b, c)
		}
	})
}

// FuzzUnpackTree looks for files that get out of the folder.
func FuzzUnpackTree(f *testing.F) {
	f.Add(makeTar(f, []entry{{"./lib/a", "", tar.TypeReg, 0o644}, {"b", "../../x", tar.TypeSymlink, 0o777}, {"b/c", "", tar.TypeReg, 0o644}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "a", "b")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = unpackTree(context.Background(), bytes.NewReader(b), dir, keepAll)
		for d, want := range map[string]string{outer: "a", filepath.Join(outer, "a"): "b"} {
			es, err := os.ReadDir(d)
			if err != nil || len(es) != 1 || es[0].Name() != want {
				t.Errorf("%s holds %v, %v", d, es, err)
			}
		}
	})
}
