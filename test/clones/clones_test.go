package clones

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/gvisor"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/testenv"
)

// clones is how many are made of each snapshot.
var clones = number("SKEP_CLONES", 50)

// atOnce is how many of them run at the same time.
const atOnce = 4

func number(env string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil && n > 1 {
		return n
	}
	return otherwise
}

// language is one of the functions. needs are tools and their packages.
type language struct {
	name  string
	needs map[string]string
	// unprotected takes what the image brings for clones out of a process.
	unprotected func(*sandbox.Process)
	// shared are sources that clones then share: what the protection is for.
	shared []string
}

func env(p *sandbox.Process, add ...string) { p.Env = append(p.Env, add...) }

func without(p *sandbox.Process, prefix string) {
	p.Args = slices.DeleteFunc(slices.Clone(p.Args), func(a string) bool { return strings.HasPrefix(a, prefix) })
}

var languages = []language{
	{name: "go", needs: map[string]string{"go": "golang"}},
	{
		name: "python", needs: map[string]string{"mmdebstrap": "mmdebstrap"},
		unprotected: func(p *sandbox.Process) {
			p.Args = slices.Insert(slices.Clone(p.Args), 1, "-S")
			env(p, "OPENSSL_CONF=/dev/null")
		},
		shared: []string{"random.random", "ssl.RAND_bytes", "tempfile.TemporaryDirectory", "tls CLIENT_TRAFFIC_SECRET_0"},
	},
	{
		name: "node", needs: map[string]string{"mmdebstrap": "mmdebstrap"},
		unprotected: func(p *sandbox.Process) {
			without(p, "--require=")
			env(p, "OPENSSL_CONF=/dev/null")
		},
		shared: []string{"randomBytes", "randomUUID", "randomInt", "Math.random", "tls CLIENT_TRAFFIC_SECRET_0"},
	},
	{
		name: "java", needs: map[string]string{"mmdebstrap": "mmdebstrap", "javac": "default-jdk-headless"},
		unprotected: func(p *sandbox.Process) { without(p, "-javaagent:") },
		shared:      []string{"Math.random", "ThreadLocalRandom", "Collections.shuffle"},
	},
}

// TestGvisor restores many clones of a snapshot of each function, and looks
// for anything that two of them have in common.
func TestGvisor(t *testing.T) {
	w := newWorld(t)
	d := gvisor.New(gvisor.Config{})
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) { w.test(t, d, l, clones) })
	}
}

// TestQemu does so with micro-VMs. Without KVM those are slow: only Go and
// Python are tried, with fewer clones, unless SKEP_CLONES_ALL is set. All take
// eight minutes.
func TestQemu(t *testing.T) {
	w := newWorld(t)
	testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	agent, err := os.ReadFile(testenv.Program(t, "github.com/skep-dev/skep/cmd/skep-agent"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := qemu.New(qemu.Config{CacheDir: t.TempDir(), Accel: qemu.AccelAuto, Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	all := os.Getenv("SKEP_CLONES_ALL") != ""
	for _, l := range languages {
		n := clones
		if !all {
			if l.name != "go" && l.name != "python" {
				continue
			}
			l.unprotected = nil
			n = number("SKEP_CLONES", 10)
		}
		t.Run(l.name, func(t *testing.T) { w.test(t, d, l, n) })
	}
}

func (w *world) test(t *testing.T, d sandbox.Driver, l language, n int) {
	for tool, pkg := range l.needs {
		testenv.Tool(t, tool, pkg)
	}
	begin := time.Now()
	img := w.build(t, withCertificate(t, filepath.Join("functions", l.name)))
	p := sandbox.Process{Args: slices.Concat(img.Config.Entrypoint, img.Config.Cmd), Env: img.Config.Env,
		Cwd: img.Config.WorkingDir, User: img.Config.User}
	t.Logf("image made in %v", time.Since(begin).Round(time.Millisecond))

	t.Run("clones", func(t *testing.T) {
		for _, s := range w.duplicates(t, d, img, p, n) {
			t.Errorf("clones share %s", s)
		}
	})
	if l.unprotected == nil {
		return
	}
	// That nothing is shared means something only if it would be otherwise.
	t.Run("unprotected", func(t *testing.T) {
		p := p
		l.unprotected(&p)
		got := w.duplicates(t, d, img, p, 2)
		for _, s := range l.shared {
			if !slices.Contains(got, s) {
				t.Errorf("unprotected clones do not share %s, but %q: what is the protection for?", s, got)
			}
		}
	})
}

// duplicates makes a snapshot of a function that has answered twice, restores
// n clones, and returns the sources that gave two of them the same value.
func (w *world) duplicates(t *testing.T, d sandbox.Driver, img *image.Image, p sandbox.Process, n int) []string {
	t.Helper()
	r := sandbox.Restore{Image: sandbox.Image{Dirs: []string{filepath.Join(w.dir, "snapshot-"+sandbox.NewID())}}}
	dir := r.Image.Dirs[0]
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	base, err := w.newBox(w.ctx(t), d, img, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	destroyed := false
	destroy := func() {
		if !destroyed {
			destroyed = true
			if err := base.destroy(w.ctx(t)); err != nil {
				t.Error(err)
			}
		}
	}
	defer destroy()
	begin := time.Now()
	all := make([]map[string][]string, 1)
	for range 2 { // generators are seeded, and caches filled
		if all[0], err = base.values(w.ctx(t), true); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("booted in %v", time.Since(begin).Round(time.Millisecond))
	base.http.CloseIdleConnections()
	if err := base.sb.(sandbox.Saver).Save(w.ctx(t), sandbox.SaveOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	destroy()

	begin = time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			v, err := w.clone(w.ctx(t), d, img, p, r)
			if err != nil {
				t.Errorf("clone %d was lost: %v", i+1, err)
				return
			}
			mu.Lock()
			all = append(all, v)
			mu.Unlock()
		})
	}
	wg.Wait()
	t.Logf("%d clones in %v", n, time.Since(begin).Round(time.Millisecond))
	if len(all) != n+1 {
		t.FailNow()
	}
	return common(t, all)
}

// clone restores a sandbox and returns what its function answers first.
func (w *world) clone(ctx context.Context, d sandbox.Driver, img *image.Image, p sandbox.Process, r sandbox.Restore) (_ map[string][]string, err error) {
	b, err := w.newBox(ctx, d, img, p, &r)
	if err != nil {
		return nil, err
	}
	defer func() {
		if derr := b.destroy(context.WithoutCancel(ctx)); err == nil {
			err = derr
		}
	}()
	v, err := b.values(ctx, false)
	if err != nil {
		err = fmt.Errorf("%w; %s", err, b.ended(ctx))
	}
	return v, err
}

// common returns the names under which two of the answers have a value in
// common.
func common(t *testing.T, all []map[string][]string) []string {
	t.Helper()
	var shared []string
	for name, values := range all[0] {
		seen := map[string]bool{}
		for _, a := range all {
			if len(a[name]) == 0 || len(a) != len(all[0]) {
				t.Errorf("an answer has no %s, or others more: %v, %d", name, a[name], len(values))
			}
			own := slices.Clone(a[name])
			slices.Sort(own)
			for _, v := range slices.Compact(own) {
				if seen[v] && !slices.Contains(shared, name) {
					shared = append(shared, name)
				}
				seen[v] = true
			}
		}
	}
	slices.Sort(shared)
	return shared
}

// withCertificate copies a function's folder and adds a certificate, so that
// the function can talk TLS.
func withCertificate(t *testing.T, source string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), filepath.Base(source))
	if out, err := exec.CommandContext(t.Context(), "cp", "-r", source, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", source, err, out)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clone"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
