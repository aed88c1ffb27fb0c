package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
)

// Snapshot is one in the node's store.
type Snapshot struct {
	ID        string    `json:"id"`
	Namespace string    `json:"namespace,omitempty"`
	Service   string    `json:"service,omitempty"`
	Revision  string    `json:"revision,omitempty"`
	Driver    string    `json:"driver,omitempty"`
	Policy    string    `json:"policy,omitempty"` // that had it made
	Created   time.Time `json:"created,omitzero"`
	LastUse   time.Time `json:"lastUse,omitzero"`
	Bytes     int64     `json:"bytes"`      // of its images, holes included
	Local     int64     `json:"localBytes"` // of its files on this machine, 0 if it has none
	// Parent is the ID of the snapshot that it is a difference from; "" if none.
	Parent string `json:"parent,omitempty"`
	// Depth is the number of layers in its longest chain, 1 for a whole one; 0
	// if it could not be read.
	Depth int `json:"depth"`
	// WorkingSet tells whether it has one.
	WorkingSet bool   `json:"workingSet"`
	Error      string `json:"error,omitempty"` // why it cannot be used
}

// SnapshotDetail is all that is known of a snapshot.
type SnapshotDetail struct {
	ID       string             `json:"id"`
	Manifest *snapshot.Manifest `json:"manifest"`
	Local    int64              `json:"localBytes"`
	Depths   map[string]int     `json:"depths"` // of each layer's chain, by role; see Snapshot
}

// SnapshotDiff compares one role of two snapshots, in pages and bytes.
type SnapshotDiff struct {
	Role        string `json:"role"`
	PageSize    int    `json:"pageSize"`
	SizeA       int64  `json:"sizeA"`
	SizeB       int64  `json:"sizeB"`
	Same        int64  `json:"same"`
	Changed     int64  `json:"changed"`
	OnlyA       int64  `json:"onlyA"`
	OnlyB       int64  `json:"onlyB"`
	SharedBytes int64  `json:"sharedBytes"` // in chunks that both use
}

// SnapshotReport says whether a snapshot is whole.
type SnapshotReport struct {
	ID       string   `json:"id"`
	Layers   int      `json:"layers"`
	Chunks   int      `json:"chunks"`
	Bytes    int64    `json:"bytes"`
	Problems []string `json:"problems,omitempty"`
	// Foreign: something of it is of another version of skep; it is not removed.
	Foreign bool `json:"foreign,omitempty"`
	// Removed: it was damaged, and is not used any more.
	Removed bool `json:"removed,omitempty"`
}

// SnapshotCopy says what a push or pull moved.
type SnapshotCopy struct {
	ID        string `json:"id"`
	Snapshots int    `json:"snapshots"`
	Objects   int64  `json:"objects"`
	Bytes     int64  `json:"bytes"`
	Present   int64  `json:"present"` // objects that were there already
	// Made: the folder copied to was not there, and was made.
	Made bool `json:"made,omitempty"`
}

// SnapshotCompact says what became of a snapshot that was compacted.
type SnapshotCompact struct {
	ID      string   `json:"id"`      // the whole one; From if that was whole already
	From    string   `json:"from"`    // what was compacted
	Depth   int      `json:"depth"`   // of From
	Removed []string `json:"removed"` // From and what it alone was on, unless somebody needs them
}

// SnapshotPrune says what was removed.
type SnapshotPrune struct {
	Evicted []string `json:"evicted"`
	Objects int      `json:"objects"`
	Bytes   int64    `json:"bytes"`
	Kept    int64    `json:"keptBytes"`
	// Foreign are those of another version of skep. While there are any,
	// snapshots are removed, but what they were made of is not freed.
	Foreign []string `json:"foreign,omitempty"`
}

// SnapshotBackend is the part of a Backend about snapshots. IDs may be cut
// short as far as they are unique.
type SnapshotBackend interface {
	// CreateSnapshot makes one of a service's instance, in a moment without
	// requests; an instance is started if there is none.
	CreateSnapshot(ctx context.Context, namespace, revision string) (Snapshot, error)
	Snapshots(ctx context.Context) ([]Snapshot, error)
	DescribeSnapshot(ctx context.Context, id string) (SnapshotDetail, error)
	DiffSnapshots(ctx context.Context, a, b string) ([]SnapshotDiff, error)
	// VerifySnapshot reads all of it; with remove, a damaged one is removed,
	// but not one of another version.
	VerifySnapshot(ctx context.Context, id string, remove bool) (SnapshotReport, error)
	// CompactSnapshot stores one that is a difference from others as a whole
	// one, which takes its place.
	CompactSnapshot(ctx context.Context, id string) (SnapshotCompact, error)
	// PushSnapshot and PullSnapshot copy to and from another store.
	PushSnapshot(ctx context.Context, id, to string) (SnapshotCopy, error)
	PullSnapshot(ctx context.Context, id, from string) (SnapshotCopy, error)
	DeleteSnapshot(ctx context.Context, id string) error
	// PruneSnapshots frees what no snapshot uses, and removes the least
	// recently used snapshots above the limit: <0 is the node's own, 0 is all.
	PruneSnapshots(ctx context.Context, limit int64) (SnapshotPrune, error)
}

func (h *handler) snapshotRoutes(mux *http.ServeMux) {
	handle(h, mux, "GET /v1/snapshots", func(r *http.Request) (any, error) { return h.backend.Snapshots(r.Context()) })
	handle(h, mux, "POST /v1/snapshots", func(r *http.Request) (any, error) {
		return h.backend.CreateSnapshot(r.Context(), r.FormValue("namespace"), r.FormValue("revision"))
	})
	handle(h, mux, "DELETE /v1/snapshots", func(r *http.Request) (any, error) {
		return struct{}{}, h.backend.DeleteSnapshot(r.Context(), r.FormValue("id"))
	})
	handle(h, mux, "GET /v1/snapshots/describe", func(r *http.Request) (any, error) {
		return h.backend.DescribeSnapshot(r.Context(), r.FormValue("id"))
	})
	handle(h, mux, "GET /v1/snapshots/diff", func(r *http.Request) (any, error) {
		return h.backend.DiffSnapshots(r.Context(), r.FormValue("a"), r.FormValue("b"))
	})
	handle(h, mux, "POST /v1/snapshots/verify", func(r *http.Request) (any, error) {
		return h.backend.VerifySnapshot(r.Context(), r.FormValue("id"), r.FormValue("remove") == "true")
	})
	handle(h, mux, "POST /v1/snapshots/compact", func(r *http.Request) (any, error) {
		return h.backend.CompactSnapshot(r.Context(), r.FormValue("id"))
	})
	handle(h, mux, "POST /v1/snapshots/push", func(r *http.Request) (any, error) {
		return h.backend.PushSnapshot(r.Context(), r.FormValue("id"), r.FormValue("store"))
	})
	handle(h, mux, "POST /v1/snapshots/pull", func(r *http.Request) (any, error) {
		return h.backend.PullSnapshot(r.Context(), r.FormValue("id"), r.FormValue("store"))
	})
	handle(h, mux, "POST /v1/snapshots/prune", func(r *http.Request) (any, error) {
		limit, err := parseLimit(r.FormValue("limit"))
		if err != nil {
			return nil, err
		}
		return h.backend.PruneSnapshots(r.Context(), limit)
	})
}

func handle(h *handler, mux *http.ServeMux, pattern string, f func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		h.reply(w, v, err)
	})
}
