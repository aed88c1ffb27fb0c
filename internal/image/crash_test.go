package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestMain also is the program that the crash tests kill: a store's
// endpoint, and an import without end.
func TestMain(m *testing.M) {
	dir := os.Getenv("SKEP_TEST_STORE")
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := child(dir, os.Getenv("SKEP_TEST_IMPORT")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(dir, file string) error {
	s, err := Open(Config{Dir: dir})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	if file == "" {
		return http.Serve(l, s.RegistryHandler())
	}
	for i := 0; ; i++ {
		img, err := s.Import(context.Background(), file, fmt.Sprintf("import:%d", i%3))
		if err != nil {
			return err
		}
		fmt.Println(img.Ref)
		if err := s.Remove(context.Background(), img.Ref); err != nil {
			return err
		}
	}
}

// start runs child; kill is kill -9.
func start(t testing.TB, dir, file string) (lines *bufio.Scanner, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SKEP_TEST_STORE="+dir, "SKEP_TEST_IMPORT="+file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	return bufio.NewScanner(out), kill
}

// wantSound checks that a store holds nothing half-made.
func wantSound(t testing.TB, s *Store) {
	t.Helper()
	wantTmpEmpty(t, s)
	blobs, err := os.ReadDir(s.path("blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		f, err := os.Open(s.path("blobs/sha256", b.Name()))
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := v1.SHA256(f)
		_ = f.Close()
		if err != nil || h.Hex != b.Name() {
			t.Errorf("blob %s is damaged: %s, %v", b.Name(), h, err)
		}
	}
	roots, err := filepath.Glob(s.path("rootfs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range roots {
		if _, err := erofstest.ReadTree(r); err != nil {
			t.Errorf("root file system %s: %v", r, err)
		}
	}
	for _, img := range s.List() {
		_, release, err := s.Use(t.Context(), img.Ref)
		if err != nil {
			t.Errorf("using %s: %v", img.Ref, err)
			continue
		}
		release()
	}
}

func TestKillDuringImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	big := make([]byte, 4<<20)
	for i := range big {
		big[i] = byte(rnd.Uint32())
	}
	file := filepath.Join(t.TempDir(), "x.tar")
	img := makeImage(t, layerOf(t, types.OCIUncompressedLayer, erofstest.File("big", string(big))),
		layerOf(t, types.OCIUncompressedLayer, erofstest.Everything()...))
	writeSave(t, file, img)
	for range 15 {
		lines, kill := start(t, dir, file)
		if !lines.Scan() {
			t.Fatal("the importer did not start")
		}
		// Not a wait for anything: a random moment is the point.
		time.Sleep(time.Duration(rnd.IntN(120)) * time.Millisecond)
		kill()
		s, err := Open(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		wantSound(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Import(t.Context(), file, "after"); err != nil {
		t.Error(err)
	}
}

func TestKillAfterPush(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var acknowledged []string
	for i := range 8 {
		lines, kill := start(t, dir, "")
		if !lines.Scan() {
			t.Fatal("the endpoint did not start")
		}
		host := lines.Text()
		for j := range 2 {
			repo := fmt.Sprintf("/app-%d-%d", i, j)
			push(t, host+repo+":v1", simpleImage(t, repo))
			acknowledged = append(acknowledged, repo+":v1")
		}
		// A push that the kill interrupts may or may not be there.
		done := make(chan struct{})
		go func() {
			defer close(done)
			if ref, err := name.ParseReference(host + "/interrupted:v1"); err == nil {
				_ = remote.Write(ref, simpleImage(t, strings.Repeat(fmt.Sprint(i), 1000)), remote.WithContext(t.Context()))
			}
		}()
		time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond) // a random moment is the point
		kill()
		<-done
	}
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantSound(t, s)
	for _, ref := range acknowledged {
		if _, err := s.Get(strings.TrimPrefix(ref, "/")); err != nil {
			t.Errorf("%s was acknowledged, and is gone: %v", ref, err)
		}
	}
	srv := serve(t, s)
	for _, ref := range acknowledged {
		parsed, err := name.ParseReference(srv + ref)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(parsed)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		} else if err := validate.Image(img); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Add(t.Context(), simpleImage(t, "small"), "small"); err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 1536<<10)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	for _, c := range []struct {
		name string
		size int
	}{{"while storing a blob", 3 << 20}, {"while flattening", 1536 << 10}} {
		data := append(append([]byte{}, random...), random...)[:c.size]
		img := makeImage(t, layerOf(t, types.OCIUncompressedLayer, erofstest.File("big", string(data))))
		_, err := s.Add(t.Context(), img, "big")
		if !errors.Is(err, ErrDiskFull) {
			t.Errorf("%s: %v", c.name, err)
		}
		t.Log(err)
		wantTmpEmpty(t, s)
		if _, err := s.GC(t.Context(), Policy{}); err != nil {
			t.Error(err)
		}
	}
	host := serve(t, s)
	ref, err := name.ParseReference(host + "/big:v1")
	if err != nil {
		t.Fatal(err)
	}
	img := makeImage(t, layerOf(t, types.OCIUncompressedLayer, erofstest.File("big", string(append(append([]byte{}, random...), random...)))))
	if err := remote.Write(ref, img); err == nil || !strings.Contains(err.Error(), ErrDiskFull.Error()) {
		t.Errorf("pushing: %v", err)
	}
	s.uploads.removeAll() // the other blobs of the push, that could be resumed
	wantTmpEmpty(t, s)
	if _, err := s.Add(t.Context(), simpleImage(t, "again"), "again"); err != nil {
		t.Errorf("after the disk was full: %v", err)
	}
	wantSound(t, s)
}
