package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/skep-dev/skep/internal/node/logs"
)

// Client talks to a node's socket.
type Client struct{ http *http.Client }

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
		},
	}}}
}

// Images lists the node's images.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var out []Image
	return out, c.call(ctx, http.MethodGet, "/v1/images", nil, &out)
}

// ImportImage stores the image in a file or folder of the node's machine. An
// empty name means the one in the file.
func (c *Client) ImportImage(ctx context.Context, path, name string) (Image, error) {
	var out Image
	resp, err := c.do(ctx, http.MethodPost, "/v1/images/import", url.Values{"path": {path}, "name": {name}})
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// RemoveImage forgets an image by reference or digest. The error wraps
// ErrNotFound if there is none.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/images", url.Values{"ref": {ref}}, &struct{}{})
}

// Instances lists what runs on the node.
func (c *Client) Instances(ctx context.Context) ([]Instance, error) {
	var out []Instance
	return out, c.call(ctx, http.MethodGet, "/v1/instances", nil, &out)
}

// Logs calls emit for each line that the query selects.
func (c *Client) Logs(ctx context.Context, q logs.Query, emit func(logs.Line) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/logs", url.Values{
		"namespace": {q.Namespace}, "revision": q.Revisions,
		"follow": {strconv.FormatBool(q.Follow)}, "tail": {strconv.Itoa(q.Tail)},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var l logs.Line
		if err := dec.Decode(&l); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read logs: %w", err)
		}
		if err := emit(l); err != nil {
			return err
		}
	}
}

func (c *Client) call(ctx context.Context, method, path string, q url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := c.do(ctx, method, path, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, q url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://skep"+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the node does not answer on its socket (is `skep up` running?): %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e errorReply
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&e); err != nil || e.Error == "" {
		e.Error = resp.Status
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, &nodeError{e.Error, ErrNotFound}
	}
	if resp.StatusCode == http.StatusBadRequest {
		return nil, &nodeError{e.Error, ErrUsage}
	}
	return nil, errors.New(e.Error)
}

// nodeError says what the node said, and is one of this package's errors.
type nodeError struct {
	text string
	is   error
}

func (e *nodeError) Error() string { return e.text }
func (e *nodeError) Unwrap() error { return e.is }
