// Package e2e tests the real binary with real clients: skep, kubectl, skopeo,
// HTTP, gRPC, WebSocket.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/skep-dev/skep/internal/image/build"
	"github.com/skep-dev/skep/test/skeptest"
)

// What all tests share, made once.
var (
	root      string // of the repository
	binary    string // skep
	probeTar  string // image of functions/probe as `docker save` writes it
	probeDir  string // the same as an OCI layout
	probe     v1.Image
	sharedBy  *skeptest.Skep // a daemon for the tests that need none of their own
	baseCache string         // of language bases, kept between runs
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	// The tests wait more than they work.
	if p := flag.Lookup("test.parallel"); p.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		_ = p.Value.Set(fmt.Sprint(runtime.GOMAXPROCS(0) + 2))
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, "end-to-end tests need root")
			return 1
		}
		fmt.Println("skipped: end-to-end tests need root")
		return 0
	}
	if testing.Short() {
		fmt.Println("skipped: -short")
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("/tmp", "skep-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // one test runs skep as another user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := prepare(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		return 1
	}
	code := m.Run()
	if err := sharedBy.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "the shared daemon:", err)
		code = 1
	}
	left, err := skeptest.Leftovers(sharedBy.Dir, sharedBy.Endpoints.NodeID)
	if err != nil || len(left) > 0 {
		fmt.Fprintf(os.Stderr, "the shared daemon left %q, error %v\n%s", left, err, sharedBy.LogTail())
		code = 1
	}
	return code
}

// prepare builds the binary and the image of the probe, and starts the
// shared daemon.
func prepare(ctx context.Context, dir string) (err error) {
	if root, err = skeptest.Root(); err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	baseCache = filepath.Join(cache, "skep-test", "build")
	if binary, err = skeptest.Build(ctx, filepath.Join(dir, "skep")); err != nil {
		return err
	}
	img, err := build.Build(ctx, build.Options{Dir: filepath.Join(root, "test/e2e/functions/probe"), CacheDir: baseCache})
	if err != nil {
		return fmt.Errorf("build the probe: %w", err)
	}
	defer img.Close()
	probeDir, probeTar = filepath.Join(dir, "probe"), filepath.Join(dir, "probe.tar")
	if err := writeLayout(probeDir, img); err != nil {
		return err
	}
	tag, err := name.NewTag("local/probe:tar")
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(probeTar, tag, img); err != nil {
		return err
	}
	if probe, err = readLayout(probeDir); err != nil {
		return err
	}
	sharedBy = &skeptest.Skep{Binary: binary, Dir: filepath.Join(dir, "shared"), Args: []string{"--sandbox", "gvisor", "--idle-after", "20s"}}
	if err := os.Mkdir(sharedBy.Dir, 0o700); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := sharedBy.Up(ctx); err != nil {
		return err
	}
	_, err = sharedBy.Run(ctx, "image", "import", probeDir, "--name", probeRef)
	return err
}

// probeRef is the probe's name on every daemon of these tests.
const probeRef = "local/probe:v1"

func writeLayout(dir string, images ...v1.Image) error {
	p, err := layout.Write(dir, empty.Index)
	for _, img := range images {
		if err == nil {
			err = p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}))
		}
	}
	return err
}

func readLayout(dir string) (v1.Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	return index.Image(m.Manifests[0].Digest)
}

func layoutOf(dir string, img v1.Image) (string, error) { return dir, writeLayout(dir, img) }
