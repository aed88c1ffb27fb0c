package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

func parseLimit(s string) (int64, error) {
	if s == "" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < -1 {
		return 0, fmt.Errorf("%w: limit %.40q is no number of bytes", ErrUsage, s)
	}
	return n, nil
}

// long is call for what may take as long as its ctx.
func long[T any](ctx context.Context, c *Client, method, path string, q url.Values) (T, error) {
	var out T
	resp, err := c.do(ctx, method, path, q)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return out, nil
}

// Snapshots lists those in the node's store, the oldest first.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	return long[[]Snapshot](ctx, c, http.MethodGet, "/v1/snapshots", nil)
}

// CreateSnapshot makes a snapshot of a revision.
func (c *Client) CreateSnapshot(ctx context.Context, namespace, revision string) (Snapshot, error) {
	return long[Snapshot](ctx, c, http.MethodPost, "/v1/snapshots", url.Values{"namespace": {namespace}, "revision": {revision}})
}

// DeleteSnapshot removes a snapshot. The error wraps ErrNotFound if there is
// none.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/snapshots", url.Values{"id": {id}}, &struct{}{})
}

// DescribeSnapshot tells all about a snapshot.
func (c *Client) DescribeSnapshot(ctx context.Context, id string) (SnapshotDetail, error) {
	return long[SnapshotDetail](ctx, c, http.MethodGet, "/v1/snapshots/describe", url.Values{"id": {id}})
}

// DiffSnapshots compares two snapshots.
func (c *Client) DiffSnapshots(ctx context.Context, a, b string) ([]SnapshotDiff, error) {
	return long[[]SnapshotDiff](ctx, c, http.MethodGet, "/v1/snapshots/diff", url.Values{"a": {a}, "b": {b}})
}

// VerifySnapshot reads all of a snapshot; with remove, a damaged one goes.
func (c *Client) VerifySnapshot(ctx context.Context, id string, remove bool) (SnapshotReport, error) {
	return long[SnapshotReport](ctx, c, http.MethodPost, "/v1/snapshots/verify", url.Values{"id": {id}, "remove": {strconv.FormatBool(remove)}})
}

// CompactSnapshot makes a whole snapshot of one that is a difference from others.
func (c *Client) CompactSnapshot(ctx context.Context, id string) (SnapshotCompact, error) {
	return long[SnapshotCompact](ctx, c, http.MethodPost, "/v1/snapshots/compact", url.Values{"id": {id}})
}

// PushSnapshot copies a snapshot to another store.
func (c *Client) PushSnapshot(ctx context.Context, id, to string) (SnapshotCopy, error) {
	return long[SnapshotCopy](ctx, c, http.MethodPost, "/v1/snapshots/push", url.Values{"id": {id}, "store": {to}})
}

// PullSnapshot copies a snapshot from another store.
func (c *Client) PullSnapshot(ctx context.Context, id, from string) (SnapshotCopy, error) {
	return long[SnapshotCopy](ctx, c, http.MethodPost, "/v1/snapshots/pull", url.Values{"id": {id}, "store": {from}})
}

// PruneSnapshots frees what is not used; see SnapshotBackend.
func (c *Client) PruneSnapshots(ctx context.Context, limit int64) (SnapshotPrune, error) {
	return long[SnapshotPrune](ctx, c, http.MethodPost, "/v1/snapshots/prune", url.Values{"limit": {strconv.FormatInt(limit, 10)}})
}
