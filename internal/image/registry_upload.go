package image

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// serveStart begins an upload, or finds that none is needed.
func (s *Store) serveStart(w http.ResponseWriter, r *http.Request, repo string) error {
	if r.Method != http.MethodPost {
		return errMethod
	}
	q := r.URL.Query()
	if mount, err := v1.NewHash(q.Get("mount")); err == nil && checkDigest(mount) == nil && s.hasBlobForPush(mount) {
		return created(w, fmt.Sprintf("/v2/%s/blobs/%s", repo, mount), mount)
	}
	up, err := s.startUpload()
	if err != nil {
		return err
	}
	if digest := q.Get("digest"); digest != "" { // all in one request
		up, err := s.uploads.take(up.id)
		if err != nil {
			return err
		}
		defer s.uploads.give(up)
		if err = s.appendUpload(up, r.Body); err == nil {
			err = s.finish(w, up, repo, digest)
		}
		if err != nil {
			up.drop() // the client has no name for it
		}
		return err
	}
	accepted(w, repo, up.id, 0, http.StatusAccepted)
	return nil
}

func (s *Store) finish(w http.ResponseWriter, up *upload, repo, digest string) error {
	h, err := v1.NewHash(digest)
	if err != nil {
		return fail(http.StatusBadRequest, "DIGEST_INVALID", "%v", err)
	}
	if err := s.finishUpload(up, h); err != nil {
		return err
	}
	return created(w, fmt.Sprintf("/v2/%s/blobs/%s", repo, h), h)
}

func created(w http.ResponseWriter, location string, h v1.Hash) error {
	w.Header().Set("Location", location)
	w.Header().Set("Docker-Content-Digest", h.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

func accepted(w http.ResponseWriter, repo, id string, size int64, status int) {
	w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/uploads/%s", repo, id))
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	w.WriteHeader(status)
}

// serveUpload continues, finishes, cancels or describes an upload.
func (s *Store) serveUpload(w http.ResponseWriter, r *http.Request, repo, id string) error {
	up, err := s.uploads.take(id)
	if err != nil {
		return err
	}
	defer s.uploads.give(up)
	switch r.Method {
	case http.MethodGet:
		accepted(w, repo, id, up.size, http.StatusNoContent)
		return nil
	case http.MethodDelete:
		up.drop()
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch, http.MethodPut:
	default:
		return errMethod
	}
	if from, _, ok := strings.Cut(r.Header.Get("Content-Range"), "-"); ok {
		if at, err := strconv.ParseInt(strings.TrimPrefix(from, "bytes "), 10, 64); err != nil || at != up.size {
			w.Header().Set("Range", fmt.Sprintf("0-%d", max(up.size-1, 0)))
			return fail(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "next byte is %d, sent was %q", up.size, r.Header.Get("Content-Range"))
		}
	}
	if err := s.appendUpload(up, r.Body); err != nil {
		return err
	}
	if r.Method == http.MethodPatch {
		accepted(w, repo, id, up.size, http.StatusAccepted)
		return nil
	}
	return s.finish(w, up, repo, r.URL.Query().Get("digest"))
}
