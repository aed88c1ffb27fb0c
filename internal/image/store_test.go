package image

import (
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
)

func TestAdd(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	img, err := s.Add(t.Context(), simpleImage(t, "v1"), "hello")
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, img, simpleFiles("v1")...)
	want := RunConfig{
		Entrypoint: []string{"/app"}, Cmd: []string{"--serve"}, Env: []string{"A=b"}, User: "1000:1000", WorkingDir: "/work",
		ExposedPorts: []string{"443/tcp", "8080/tcp"}, Labels: map[string]string{"l": "v"},
	}
	if !reflect.DeepEqual(img.Config, want) {
		t.Errorf("config %+v, want %+v", img.Config, want)
	}
	if img.Ref != "hello:latest" || img.Size == 0 || img.RootfsSize == 0 || img.RootfsNoXattrs != img.Rootfs {
		t.Errorf("image %+v", img)
	}
	for _, ref := range []string{"hello", "hello:latest", "docker.io/library/hello", img.Digest, "hello@" + img.Digest} {
		got, err := s.Get(ref)
		if err != nil || got.Digest != img.Digest {
			t.Errorf("Get(%q) = %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"hello:v2", "other", "other@" + img.Digest, "sha256:" + img.Digest[8:70] + "00"} {
		if got, err := s.Get(ref); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBadReference) {
			t.Errorf("Get(%q) = %+v, %v", ref, got, err)
		}
	}
	if _, err := s.Get("Not A Name"); !errors.Is(err, ErrBadReference) {
		t.Errorf("bad reference: %v", err)
	}
	wantTmpEmpty(t, s)
}

func TestCompressions(t *testing.T) {
	t.Parallel()
	for _, mediaType := range []types.MediaType{types.OCILayer, types.DockerLayer, types.OCILayerZStd, types.OCIUncompressedLayer} {
		t.Run(string(mediaType), func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			img, err := s.Add(t.Context(), makeImage(t, layerOf(t, mediaType, erofstest.File("app", "x"))), "hello")
			if err != nil {
				t.Fatal(err)
			}
			wantFiles(t, img, "app=x")
		})
	}
}

func TestScratchWithoutLayers(t *testing.T) {
	t.Parallel()
	img, err := openStore(t).Add(t.Context(), makeImage(t), "nothing")
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, img)
}

// Two images with the same layers share one root file system, and blobs.
func TestSharing(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	base := simpleImage(t, "v1")
	one, err := s.Add(t.Context(), base, "one")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := base.ConfigFile()
	cfg = cfg.DeepCopy()
	cfg.Config.Cmd = []string{"other"}
	other, err := mutate.ConfigFile(base, cfg)
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.Add(t.Context(), other, "two")
	if err != nil {
		t.Fatal(err)
	}
	if one.Rootfs != two.Rootfs || one.Digest == two.Digest {
		t.Errorf("not shared: %+v, %+v", one, two)
	}
	blobs, _ := os.ReadDir(s.path("blobs/sha256"))
	if len(blobs) != 2+2+2 { // layers, configs, manifests
		t.Errorf("%d blobs", len(blobs))
	}
}

func TestXattrVariant(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	img, err := s.Add(t.Context(), makeImage(t, layerOf(t, types.OCILayer, erofstest.Everything()...)), "all")
	if err != nil {
		t.Fatal(err)
	}
	if img.RootfsNoXattrs == img.Rootfs {
		t.Fatal("no variant without xattrs")
	}
	a, err := erofstest.ReadTree(img.Rootfs)
	if err != nil {
		t.Fatal(err)
	}
	b, err := erofstest.ReadTree(img.RootfsNoXattrs)
	if err != nil || !reflect.DeepEqual(a, b) {
		t.Fatalf("variants differ: %v", err)
	}
}

func TestReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrStoreInUse) {
		t.Errorf("second Open: %v", err)
	}
	img, err := s.Add(t.Context(), simpleImage(t, "v1"), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("tmp", "left-over"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), simpleImage(t, "v2"), "hello"); err == nil {
		t.Error("a closed store takes images")
	}
	if s, err = Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantTmpEmpty(t, s)
	again, err := s.Get("hello")
	if err != nil || again.Digest != img.Digest || !again.Added.Equal(img.Added) {
		t.Errorf("after reopening: %+v, %v", again, err)
	}
	// A root file system that was lost is made again.
	if err := os.Remove(again.Rootfs); err != nil {
		t.Fatal(err)
	}
	used, release, err := s.Use(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	release()
	wantFiles(t, used, simpleFiles("v1")...)
}

func TestRemoveAndGC(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, n := range []string{"a", "b", "c"} {
		if _, err := s.Add(t.Context(), simpleImage(t, n), n); err != nil {
			t.Fatal(err)
		}
	}
	a, release, err := s.Use(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "a"); !errors.Is(err, ErrInUse) {
		t.Errorf("removing an image in use: %v", err)
	}
	if err := s.Remove(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing twice: %v", err)
	}
	res, err := s.GC(t.Context(), Policy{MaxBytes: 1})
	if err != nil || !reflect.DeepEqual(res.Removed, []string{"c:latest"}) || res.Freed == 0 {
		t.Errorf("GC = %+v, %v", res, err)
	}
	wantFiles(t, a, simpleFiles("a")...)
	release()
	release() // twice is allowed
	if res, err = s.GC(t.Context(), Policy{MaxBytes: 1, Keep: func(i *Image) bool { return i.Ref == "a:latest" }}); err != nil || len(res.Removed) > 0 {
		t.Errorf("GC = %+v, %v", res, err)
	}
	if res, err = s.GC(t.Context(), Policy{MaxBytes: 1}); err != nil || len(res.Removed) != 1 || res.Used != 0 {
		t.Errorf("GC = %+v, %v", res, err)
	}
	for _, dir := range []string{"blobs/sha256", "rootfs", "diffs", "tmp"} {
		if left, _ := os.ReadDir(s.path(dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	if len(s.List()) != 0 {
		t.Errorf("List = %v", s.List())
	}
}

// An image must not get another's files by naming its layers in the config.
func TestBorrowedDiffIDs(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	secret := simpleImage(t, "secret")
	if _, err := s.Add(t.Context(), secret, "secret"); err != nil {
		t.Fatal(err)
	}
	mine := simpleImage(t, "mine")
	theirs, _ := secret.ConfigFile()
	cfg, _ := mine.ConfigFile()
	cfg = cfg.DeepCopy()
	cfg.RootFS.DiffIDs = theirs.RootFS.DiffIDs
	thief, err := mutate.ConfigFile(mine, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := s.Add(t.Context(), thief, "thief"); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %+v, %v", img, err)
	}
	if _, err := s.Get("thief"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get: %v", err)
	}
}
