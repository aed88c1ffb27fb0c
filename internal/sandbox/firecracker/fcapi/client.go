// Package fcapi is a client of Firecracker's HTTP API on its Unix socket: the
// part of it that a driver of sandboxes needs, with the names of Firecracker's
// own description of it.
package fcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// callTimeout bounds a call whose context ends no sooner.
	callTimeout = 30 * time.Second
	// snapshotTimeout is the same for calls that read or write the memory.
	snapshotTimeout = 5 * time.Minute
	// maxAnswer bounds an answer, in bytes: the process that gives it runs
	// the guest.
	maxAnswer = 1 << 20
)

// Error is what Firecracker answers when it refuses a request.
type Error struct {
	Method, Path string
	Status       int    // HTTP's
	Message      string // Firecracker's
}

// Error says which request was refused, and why.
func (e *Error) Error() string {
	return fmt.Sprintf("firecracker: %s %s: %d: %s", e.Method, e.Path, e.Status, e.Message)
}

// Client talks to one Firecracker process. Its methods are safe for concurrent
// use; Firecracker answers one after the other.
type Client struct {
	http *http.Client
}

// New makes a client of the process that dial connects to.
func New(dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxConnsPerHost:        1,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	defer res.Body.Close() //nolint:errcheck // read only
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: read the answer: %w", method, path, err)
	}
	if len(answer) > maxAnswer {
		return fmt.Errorf("firecracker: %s %s: the answer is longer than %d bytes", method, path, maxAnswer)
	}
	if res.StatusCode/100 != 2 {
		return &Error{Method: method, Path: path, Status: res.StatusCode, Message: fault(answer)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("firecracker: %s %s: read the answer: %w", method, path, err)
	}
	return nil
}

// fault is the reason in an answer to a refused request.
func fault(answer []byte) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	text := string(answer)
	if json.Unmarshal(answer, &f) == nil && f.Message != "" {
		text = f.Message
	}
	const most = 2048
	text = strings.ToValidUTF8(text[:min(len(text), most)], "")
	return strings.Join(strings.Fields(text), " ")
}

func (c *Client) put(ctx context.Context, path string, in any) error {
	return c.call(ctx, callTimeout, http.MethodPut, path, in, nil)
}

func (c *Client) patch(ctx context.Context, path string, in any) error {
	return c.call(ctx, callTimeout, http.MethodPatch, path, in, nil)
}

// Describe says what the process is doing.
func (c *Client) Describe(ctx context.Context) (InstanceInfo, error) {
	var i InstanceInfo
	return i, c.call(ctx, callTimeout, http.MethodGet, "/", nil, &i)
}

// Version is the process's version, without a "v".
func (c *Client) Version(ctx context.Context) (string, error) {
	var v Version
	err := c.call(ctx, callTimeout, http.MethodGet, "/version", nil, &v)
	return v.Version, err
}

// PutMachineConfig sets the machine's size, before it starts.
func (c *Client) PutMachineConfig(ctx context.Context, m MachineConfig) error {
	return c.put(ctx, "/machine-config", m)
}

// PutCPUConfig sets a custom CPU template, before the machine starts.
func (c *Client) PutCPUConfig(ctx context.Context, t CPUConfig) error {
	return c.put(ctx, "/cpu-config", t)
}

// PutBootSource sets what the machine boots.
func (c *Client) PutBootSource(ctx context.Context, b BootSource) error {
	return c.put(ctx, "/boot-source", b)
}

// PutDrive adds a disk, before the machine starts.
func (c *Client) PutDrive(ctx context.Context, d Drive) error {
	return c.put(ctx, "/drives/"+d.ID, d)
}

// PatchDrive changes a disk's file or limits, once the machine is there.
func (c *Client) PatchDrive(ctx context.Context, d DriveUpdate) error {
	return c.patch(ctx, "/drives/"+d.ID, d)
}

// PutNetworkInterface adds a network card, before the machine starts.
func (c *Client) PutNetworkInterface(ctx context.Context, n NetworkInterface) error {
	return c.put(ctx, "/network-interfaces/"+n.ID, n)
}

// PatchNetworkInterface changes a card's limits.
func (c *Client) PatchNetworkInterface(ctx context.Context, n NetworkInterfaceUpdate) error {
	return c.patch(ctx, "/network-interfaces/"+n.ID, n)
}

// PutBalloon adds the balloon, before the machine starts.
func (c *Client) PutBalloon(ctx context.Context, b Balloon) error {
	return c.put(ctx, "/balloon", b)
}

// PatchBalloon changes the balloon's size.
func (c *Client) PatchBalloon(ctx context.Context, b BalloonUpdate) error {
	return c.patch(ctx, "/balloon", b)
}

// BalloonStats is the balloon's state, if it was added with statistics.
func (c *Client) BalloonStats(ctx context.Context) (BalloonStats, error) {
	var s BalloonStats
	return s, c.call(ctx, callTimeout, http.MethodGet, "/balloon/statistics", nil, &s)
}

// PutMMDSConfig has the machine answer its guest's questions for metadata,
// before it starts.
func (c *Client) PutMMDSConfig(ctx context.Context, m MMDSConfig) error {
	return c.put(ctx, "/mmds/config", m)
}

// PutMMDS sets the metadata, a JSON object: at any time, and anew in a machine
// that was loaded.
func (c *Client) PutMMDS(ctx context.Context, data json.RawMessage) error {
	return c.put(ctx, "/mmds", data)
}

// PutEntropy adds a random number generator, before the machine starts.
func (c *Client) PutEntropy(ctx context.Context, e Entropy) error {
	return c.put(ctx, "/entropy", e)
}

// PutSerial says where the console goes, before the machine starts.
func (c *Client) PutSerial(ctx context.Context, s Serial) error {
	return c.put(ctx, "/serial", s)
}

// Act does something at once, such as starting the machine.
func (c *Client) Act(ctx context.Context, a ActionType) error {
	return c.put(ctx, "/actions", Action{Type: a})
}

// SetState pauses or resumes the machine.
func (c *Client) SetState(ctx context.Context, s VMState) error {
	return c.patch(ctx, "/vm", VM{State: s})
}

// CreateSnapshot writes a snapshot of the paused machine.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	return c.call(ctx, snapshotTimeout, http.MethodPut, "/snapshot/create", s, nil)
}

// LoadSnapshot makes the machine from a snapshot, in a process that has none.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	return c.call(ctx, snapshotTimeout, http.MethodPut, "/snapshot/load", s, nil)
}
