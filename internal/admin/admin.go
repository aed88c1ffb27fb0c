// Package admin is a node's own small API on a Unix socket that only its
// owner may open: what the machine holds (images, instances) and what
// functions print. What should run is the Kubernetes API's business.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/skep-dev/skep/internal/node/logs"
)

// Image is an image on the node.
type Image struct {
	Ref     string    `json:"ref"`
	Digest  string    `json:"digest"`
	Bytes   int64     `json:"bytes"` // of its root file system
	Created time.Time `json:"created"`
	InUse   bool      `json:"inUse"`
}

// Instance is a sandbox that serves a revision.
type Instance struct {
	ID          string        `json:"id"`
	Namespace   string        `json:"namespace"`
	Service     string        `json:"service"`
	Revision    string        `json:"revision"`
	Driver      string        `json:"driver"`
	Start       string        `json:"start"` // booted or restored
	ReadyAt     time.Time     `json:"readyAt"`
	MemoryBytes int64         `json:"memoryBytes"`
	CPUTime     time.Duration `json:"cpuTimeNanos"`
}

// Backend is what the server serves.
type Backend interface {
	Images(ctx context.Context) ([]Image, error)
	// ImportImage reads a file or folder of this machine; ref "" means the
	// name in it.
	ImportImage(ctx context.Context, path, ref string) (Image, error)
	RemoveImage(ctx context.Context, ref string) error
	Instances(ctx context.Context) ([]Instance, error)
	Logs(ctx context.Context, q logs.Query, emit func(logs.Line) error) error
	SnapshotBackend
}

// ErrNotFound is what a Backend wraps if there is no such thing.
var ErrNotFound = errors.New("not found")

// ErrUsage is what a Backend wraps if what it is asked for cannot be.
var ErrUsage = errors.New("cannot be")

// Listen opens the socket, replacing one that a dead process left.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

// Handler serves a backend.
func Handler(b Backend, log *slog.Logger) http.Handler {
	h := &handler{b, log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/images", h.images)
	mux.HandleFunc("POST /v1/images/import", h.importImage)
	mux.HandleFunc("DELETE /v1/images", h.removeImage)
	mux.HandleFunc("GET /v1/instances", h.instances)
	mux.HandleFunc("GET /v1/logs", h.logs)
	h.snapshotRoutes(mux)
	return mux
}

type handler struct {
	backend Backend
	log     *slog.Logger
}

func (h *handler) images(w http.ResponseWriter, r *http.Request) {
	images, err := h.backend.Images(r.Context())
	h.reply(w, images, err)
}

func (h *handler) importImage(w http.ResponseWriter, r *http.Request) {
	img, err := h.backend.ImportImage(r.Context(), r.FormValue("path"), r.FormValue("name"))
	h.reply(w, img, err)
}

func (h *handler) removeImage(w http.ResponseWriter, r *http.Request) {
	h.reply(w, struct{}{}, h.backend.RemoveImage(r.Context(), r.FormValue("ref")))
}

func (h *handler) instances(w http.ResponseWriter, r *http.Request) {
	instances, err := h.backend.Instances(r.Context())
	h.reply(w, instances, err)
}

// logs streams JSON lines.
func (h *handler) logs(w http.ResponseWriter, r *http.Request) {
	tail, err := strconv.Atoi(r.FormValue("tail"))
	if err != nil {
		tail = -1
	}
	q := logs.Query{
		Namespace: r.FormValue("namespace"),
		Revisions: r.Form["revision"],
		Follow:    r.FormValue("follow") == "true",
		Tail:      tail,
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	if q.Follow {
		_ = rc.Flush() // so that the client knows it is connected
	}
	err = h.backend.Logs(r.Context(), q, func(l logs.Line) error {
		if err := enc.Encode(l); err != nil {
			return err
		}
		if q.Follow {
			return rc.Flush()
		}
		return nil
	})
	if err != nil && r.Context().Err() == nil {
		h.log.Warn("send logs", "error", err)
	}
}

type errorReply struct {
	Error string `json:"error"`
}

func (h *handler) reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, ErrNotFound) {
			status = http.StatusNotFound
		}
		if errors.Is(err, ErrUsage) {
			status = http.StatusBadRequest
		}
		w.WriteHeader(status)
		v = errorReply{err.Error()}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		h.log.Debug("send reply", "error", err)
	}
}
