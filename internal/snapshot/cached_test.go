package snapshot

import (
	"bytes"
	"context"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/s3"
)

// bucketStore is a store in a bucket of an S3 server, as a node has it, with
// the bucket itself.
func bucketStore(t *testing.T) (*Store, *s3mem.Backend) {
	t.Helper()
	mem := s3mem.New()
	if err := mem.CreateBucket("store"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(mem).Server())
	t.Cleanup(srv.Close)
	remote, err := s3.Open(context.Background(), s3.Config{Endpoint: srv.URL, Region: "r", Bucket: "store", AccessKey: "k", SecretKey: "s"})
	if err != nil {
		t.Fatal(err)
	}
	limited := backend.Limit(backend.Retry(remote, backend.RetryOptions{}), backend.LimitOptions{Calls: 4})
	cached, err := backend.Cache(limited, backend.CacheOptions{Dir: t.TempDir(), MaxBytes: 8 << 20, Match: Cacheable})
	if err != nil {
		t.Fatal(err)
	}
	return New(cached, Options{}), mem
}

// flip changes a byte of an object in the bucket, behind everybody's back.
func flip(t *testing.T, mem *s3mem.Backend, name string) {
	t.Helper()
	o, err := mem.GetObject("store", name, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(o.Contents)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if _, err := mem.PutObject("store", name, map[string]string{}, bytes.NewReader(data), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
}

// What the node has in its cache says nothing about what the bucket has.
func TestVerifyReadsTheBucket(t *testing.T) {
	for _, dir := range []string{chunkDir, layerDir, manifestDir} {
		t.Run(strings.TrimSuffix(dir, "/"), func(t *testing.T) {
			s, mem := bucketStore(t)
			img := noise(1, 1<<20)
			id, ref := create(t, s, ID{}, img, LayerOptions{})
			wantImage(t, s, ref.Digest, img) // now the cache surely has it
			if r, err := s.Verify(t.Context(), id); err != nil || !r.OK() {
				t.Fatalf("before: %+v, %v", r, err)
			}
			name := objects(t, s.b, dir)[0]
			flip(t, mem, name)
			r, err := s.Verify(t.Context(), id)
			if err != nil || len(r.Problems) != 1 || r.Problems[0].Object != name || r.Problems[0].Kind != Corrupt {
				t.Fatalf("a flipped bit in the bucket: %+v, %v", r, err)
			}
			if dir != manifestDir {
				if _, err := readLayer(t, s, ref.Digest); err == nil {
					t.Error("the cache still has what is damaged in the bucket")
				}
			}
			// Somebody else mends it; what was damaged is kept nowhere.
			flip(t, mem, name)
			if r, err := s.Verify(t.Context(), id); err != nil || !r.OK() {
				t.Errorf("mended: %+v, %v", r, err)
			}
			wantImage(t, s, ref.Digest, img)
		})
	}
}
