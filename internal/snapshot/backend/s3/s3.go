// Package s3 is a backend in an S3-compatible object store. It uses minio-go:
// of the two well-kept Go clients it is the lighter one by far, and made for
// stores other than Amazon's too.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Config says where the objects are.
type Config struct {
	Endpoint string // http://host:port or https://host, without a path
	Region   string // may be empty where the store does not care
	Bucket   string // must exist
	Prefix   string // folder within the bucket, may be empty
	// AccessKey and SecretKey identify us. When both are empty they come from
	// the environment (AWS_ACCESS_KEY_ID ...), the shared credentials file or
	// the machine's role.
	AccessKey, SecretKey string
	// Transport makes the requests; nil means minio-go's default.
	Transport http.RoundTripper
}

// Backend keeps objects in a bucket.
type Backend struct {
	core   minio.Core
	bucket string
	prefix string
}

var _ backend.Backend = (*Backend)(nil)

// maxSinglePut is S3's limit for an object that is put in one request, which
// is what makes putting atomic.
const maxSinglePut = 5 << 30

// Open checks the configuration and that the bucket can be reached.
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("endpoint of the object store: %q is not like https://host:port", cfg.Endpoint)
	}
	if (cfg.AccessKey == "") != (cfg.SecretKey == "") {
		return nil, errors.New("the object store needs both access key and secret key, or neither")
	}
	if err := backend.CheckPrefix(cfg.Prefix); err != nil {
		return nil, fmt.Errorf("prefix in the object store: %w", err)
	}
	creds := credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, "")
	if cfg.AccessKey == "" {
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		})
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds:      creds,
		Secure:     u.Scheme == "https",
		Region:     cfg.Region,
		Transport:  cfg.Transport,
		MaxRetries: 1, // backend.Retry decides
	})
	if err != nil {
		return nil, fmt.Errorf("opening the object store %s: %w", cfg.Endpoint, err)
	}
	ok, err := client.BucketExists(ctx, cfg.Bucket)
	if err != nil {
		return nil, fmt.Errorf("looking for bucket %q at %s: %w", cfg.Bucket, cfg.Endpoint, err)
	}
	if !ok {
		return nil, fmt.Errorf("bucket %q does not exist at %s: make it first", cfg.Bucket, cfg.Endpoint)
	}
	prefix := strings.Trim(cfg.Prefix, "/")
	if prefix != "" {
		prefix += "/"
	}
	return &Backend{core: minio.Core{Client: client}, bucket: cfg.Bucket, prefix: prefix}, nil
}

// Put implements backend.Backend. The write-once rule is kept by a conditional
// request (If-None-Match: *), and once more by looking before, for stores that
// ignore the condition.
func (b *Backend) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if size < 1 || size > maxSinglePut {
		return fmt.Errorf("%w: %s: %d bytes, allowed are 1 to %d", backend.ErrSize, name, size, int64(maxSinglePut))
	}
	switch _, err := b.Stat(ctx, name); {
	case err == nil:
		return fmt.Errorf("object %s: %w", name, backend.ErrExist)
	case !errors.Is(err, backend.ErrNotExist):
		return err
	}
	opts := minio.PutObjectOptions{DisableMultipart: true, ContentType: "application/octet-stream"}
	opts.SetMatchETagExcept("*")
	src := &probed{r: backend.SizedReader(ctx, name, r, size)}
	body := io.MultiReader(io.LimitReader(src, size-1), &last{src: src})
	_, err := b.core.Client.PutObject(ctx, b.bucket, b.prefix+name, body, size, opts)
	if src.err != nil {
		return fmt.Errorf("putting object %s: %w", name, src.err)
	}
	return b.wrap("putting", name, err)
}

// probed remembers the error of its source, which the client may replace.
type probed struct {
	r   io.Reader
	err error
}

func (p *probed) Read(buf []byte) (int, error) {
	n, err := p.r.Read(buf)
	if err != nil && err != io.EOF {
		p.err = err
	}
	return n, err
}

// last gives the final byte only when nothing follows them, so
// that a source that is too long is refused before the request is complete.
type last struct {
	src  io.Reader
	done bool
}

func (l *last) Read(p []byte) (int, error) {
	if l.done {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	var one [1]byte
	if _, err := io.ReadFull(l.src, one[:]); err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, l.src); err != nil {
		return 0, err
	}
	l.done = true
	p[0] = one[0]
	return 1, nil
}

// Get implements backend.Backend.
func (b *Backend) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	// Ranges at and beyond the end, and empty ones, cannot be asked of S3.
	if length < 0 || length == 0 || offset < 0 {
		info, err := b.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		if length, err = backend.CheckRange(name, info.Size, offset, length); err != nil {
			return nil, err
		}
		if length == 0 {
			return io.NopCloser(strings.NewReader("")), nil
		}
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(offset, offset+length-1); err != nil {
		return nil, fmt.Errorf("getting object %s: %w", name, err)
	}
	rc, info, _, err := b.core.GetObject(ctx, b.bucket, b.prefix+name, opts)
	if err != nil {
		return nil, b.wrap("getting", name, err)
	}
	if info.Size >= 0 && info.Size < length {
		rc.Close()
		return nil, fmt.Errorf("%w: %s ends %d bytes after %d, wanted %d", backend.ErrRange, name, info.Size, offset, length)
	}
	return backend.ExactReader(ctx, rc, length), nil
}

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Info, error) {
	if err := backend.CheckName(name); err != nil {
		return backend.Info{}, err
	}
	info, err := b.core.Client.StatObject(ctx, b.bucket, b.prefix+name, minio.StatObjectOptions{})
	if err != nil {
		return backend.Info{}, b.wrap("looking up", name, err)
	}
	return backend.Info{Name: name, Size: info.Size, Modified: info.LastModified}, nil
}

// List implements backend.Backend.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Info) error) error {
	if err := backend.CheckPrefix(prefix); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the client's goroutine when fn stops early
	objects := b.core.Client.ListObjects(ctx, b.bucket, minio.ListObjectsOptions{
		Prefix: b.prefix + prefix, Recursive: true,
	})
	for o := range objects {
		if o.Err != nil {
			return b.wrap("listing", prefix, o.Err)
		}
		name := strings.TrimPrefix(o.Key, b.prefix)
		if backend.CheckName(name) != nil {
			continue // not ours
		}
		if err := fn(backend.Info{Name: name, Size: o.Size, Modified: o.LastModified}); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Delete implements backend.Backend.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	err := b.wrap("deleting", name, b.core.Client.RemoveObject(ctx, b.bucket, b.prefix+name, minio.RemoveObjectOptions{}))
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return err
}

// wrap gives the store's answers our kinds of error.
func (b *Backend) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	resp := minio.ToErrorResponse(err)
	where := path.Join(b.bucket, b.prefix, name)
	switch {
	case resp.Code == "NoSuchKey" || resp.StatusCode == http.StatusNotFound && resp.Code != "NoSuchBucket":
		return fmt.Errorf("%s %s: %w", op, where, backend.ErrNotExist)
	case resp.StatusCode == http.StatusPreconditionFailed:
		return fmt.Errorf("%s %s: %w", op, where, backend.ErrExist)
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s %s: %w", op, where, backend.ErrRange)
	}
	return fmt.Errorf("%s %s: %w", op, where, err)
}
