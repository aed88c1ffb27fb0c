package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// RegistryHandler serves the store as an OCI distribution endpoint, to be
// pushed to and pulled from by docker, skopeo and the like. It has no access
// control: serve it on loopback only. What is acknowledged is on disk.
//
// hosts are the names under which clients reach it, "127.0.0.1:5000": they
// are no part of an image's name, so that what is pushed as
// 127.0.0.1:5000/hello is the image "hello" here.
//
// (go-containerregistry's own registry handler keeps manifests and unfinished
// uploads in memory, without bounds.)
func (s *Store) RegistryHandler(hosts ...string) http.Handler {
	s.mu.Lock()
	s.hosts = append(slices.Clone(s.hosts), hosts...)
	s.mu.Unlock()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		r.Body = &stallBody{ReadCloser: r.Body, control: http.NewResponseController(w)}
		if err := s.route(w, r); err != nil {
			s.log.Debug("registry request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			writeError(w, err)
		}
	})
}

// stallBody gives a client time per read rather than per request.
type stallBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *stallBody) Read(p []byte) (int, error) {
	// Not every ResponseWriter can (HTTP/2 over a test's recorder); then the
	// server's own timeouts are all there is.
	_ = b.control.SetReadDeadline(time.Now().Add(stallTimeout))
	return b.ReadCloser.Read(p)
}

var (
	repoPattern   = `([a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*(?::[0-9]+)?(?:/[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*)*)`
	blobRoute     = regexp.MustCompile(`^/v2/` + repoPattern + `/blobs/(sha256:[0-9a-f]{64})$`)
	startRoute    = regexp.MustCompile(`^/v2/` + repoPattern + `/blobs/uploads/?$`)
	uploadRoute   = regexp.MustCompile(`^/v2/` + repoPattern + `/blobs/uploads/([A-Z0-9]{10,64})$`)
	manifestRoute = regexp.MustCompile(`^/v2/` + repoPattern + `/manifests/(sha256:[0-9a-f]{64}|[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})$`)
	tagsRoute     = regexp.MustCompile(`^/v2/` + repoPattern + `/tags/list$`)
)

// apiError is an error of the distribution protocol.
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.message }

func fail(status int, code, format string, args ...any) error {
	return &apiError{status, code, fmt.Sprintf(format, args...)}
}

var errMethod = &apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed"}

func (s *Store) route(w http.ResponseWriter, r *http.Request) error {
	p := r.URL.Path
	if len(p) > 1024 {
		return fail(http.StatusBadRequest, "NAME_INVALID", "path of %d bytes", len(p))
	}
	if m := blobRoute.FindStringSubmatch(p); m != nil {
		return s.serveBlob(w, r, m[2])
	}
	if m := startRoute.FindStringSubmatch(p); m != nil {
		return s.serveStart(w, r, m[1])
	}
	if m := uploadRoute.FindStringSubmatch(p); m != nil {
		return s.serveUpload(w, r, m[1], m[2])
	}
	if m := manifestRoute.FindStringSubmatch(p); m != nil {
		return s.serveManifest(w, r, m[1], m[2])
	}
	if m := tagsRoute.FindStringSubmatch(p); m != nil {
		return s.serveTags(w, r, m[1])
	}
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return errMethod
	case p == "/v2" || p == "/v2/":
		w.WriteHeader(http.StatusOK)
		return nil
	case p == "/v2/_catalog":
		return s.serveCatalog(w, r)
	}
	return fail(http.StatusNotFound, "NAME_UNKNOWN", "no such path: %.200s", p)
}

func writeError(w http.ResponseWriter, err error) {
	var e *apiError
	switch {
	case errors.As(err, &e):
	case errors.Is(err, ErrDiskFull):
		e = &apiError{http.StatusInsufficientStorage, "DENIED", err.Error()}
	case errors.Is(err, ErrTooLarge):
		e = &apiError{http.StatusRequestEntityTooLarge, "SIZE_INVALID", err.Error()}
	case errors.Is(err, ErrCorrupt):
		e = &apiError{http.StatusBadRequest, "DIGEST_INVALID", err.Error()}
	case errors.Is(err, ErrNotImage), errors.Is(err, ErrWrongPlatform), errors.Is(err, ErrBadReference):
		e = &apiError{http.StatusBadRequest, "MANIFEST_INVALID", err.Error()}
	case errors.Is(err, ErrNotFound):
		e = &apiError{http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error()}
	case errors.Is(err, errNoUpload):
		e = &apiError{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", err.Error()}
	case errors.Is(err, ErrInUse):
		e = &apiError{http.StatusConflict, "DENIED", err.Error()}
	case errors.Is(err, errTooManyUploads):
		w.Header().Set("Retry-After", "10")
		e = &apiError{http.StatusTooManyRequests, "TOOMANYREQUESTS", err.Error()}
	case errors.Is(err, ErrClosed):
		e = &apiError{http.StatusServiceUnavailable, "UNAVAILABLE", err.Error()}
	default:
		e = &apiError{http.StatusInternalServerError, "UNKNOWN", err.Error()}
	}
	writeJSON(w, e.status, map[string]any{"errors": []map[string]string{{"code": e.code, "message": e.message}}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte(`{}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func (s *Store) serveBlob(w http.ResponseWriter, r *http.Request, digest string) error {
	h, err := v1.NewHash(digest)
	if err != nil {
		return fail(http.StatusBadRequest, "DIGEST_INVALID", "%v", err)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return errMethod // blobs go when no image needs them
	}
	if !s.hasBlobForPush(h) {
		return fail(http.StatusNotFound, "BLOB_UNKNOWN", "no blob %s", h)
	}
	f, err := os.Open(s.blobPath(h))
	if err != nil {
		return fail(http.StatusNotFound, "BLOB_UNKNOWN", "no blob %s", h)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+digest+`"`)
	http.ServeContent(w, r, "", st.ModTime(), f)
	return nil
}

func (s *Store) serveTags(w http.ResponseWriter, r *http.Request, repo string) error {
	if r.Method != http.MethodGet {
		return errMethod
	}
	parsed, err := s.parseRef(repo)
	if err != nil {
		return err
	}
	tags := []string{}
	s.eachRef(func(ref name.Reference) {
		if tag, ok := ref.(name.Tag); ok && tag.Context().Name() == parsed.Context().Name() {
			tags = append(tags, tag.TagStr())
		}
	})
	if len(tags) == 0 {
		return fail(http.StatusNotFound, "NAME_UNKNOWN", "no image %s", repo)
	}
	writeJSON(w, http.StatusOK, map[string]any{"name": repo, "tags": page(r, tags)})
	return nil
}

func (s *Store) serveCatalog(w http.ResponseWriter, r *http.Request) error {
	repos := []string{}
	s.eachRef(func(ref name.Reference) { repos = append(repos, shortRef(ref.Context().Name())) })
	writeJSON(w, http.StatusOK, map[string]any{"repositories": page(r, repos)})
	return nil
}

func (s *Store) eachRef(f func(name.Reference)) {
	s.mu.Lock()
	entries := s.index.entries
	s.mu.Unlock()
	for _, d := range entries {
		if ref, err := name.ParseReference(d.Annotations[annotationRef]); err == nil {
			f(ref)
		}
	}
}

// page sorts, and cuts as the query's n and last say.
func page(r *http.Request, all []string) []string {
	slices.Sort(all)
	all = slices.Compact(all)
	if last := r.URL.Query().Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("n")); err == nil && n >= 0 && n < len(all) {
		all = all[:n]
	}
	return all
}
