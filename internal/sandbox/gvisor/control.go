package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// maxReply bounds what a sandbox, which may be hostile, can make us read.
const maxReply = 1 << 20

// errGone says that the sandbox ended before it answered.
var errGone = errors.New("the sandbox is gone")

// remoteError is an error that the sandbox answered with.
type remoteError struct{ method, message string }

func (e *remoteError) Error() string { return e.method + ": " + e.message }

// call makes one remote procedure call to the sandbox whose control socket is
// at path, passing files along with it, and decodes the answer into result
// unless that is nil.
//
// This is the protocol of gVisor's package urpc, spoken with package net:
// urpc's own client takes an operating system thread while it waits, and we
// wait on every sandbox for as long as it lives. It cannot be cancelled
// either.
func call(ctx context.Context, path, method string, arg, result any, files ...*os.File) error {
	conn, err := dialControl(ctx, path)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := roundTrip(conn, method, arg, result, files); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", method, context.Cause(ctx))
		}
		return err
	}
	return nil
}

func dialControl(ctx context.Context, path string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return nil, errGone
		}
		return nil, fmt.Errorf("connect to the sandbox: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

func roundTrip(conn *net.UnixConn, method string, arg, result any, files []*os.File) error {
	request, err := json.Marshal(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	if err != nil {
		return fmt.Errorf("%s: encode: %w", method, err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(request, rights, nil)
	runtime.KeepAlive(files)
	if err == nil && n < len(request) {
		_, err = conn.Write(request[n:])
	}
	if err != nil {
		return fmt.Errorf("%s: %w", method, gone(err))
	}
	return readReply(conn, method, result)
}

func readReply(r io.Reader, method string, result any) error {
	reply := struct {
		Success bool            `json:"success"`
		Err     string          `json:"err"`
		Result  json.RawMessage `json:"result"`
	}{}
	if err := json.NewDecoder(io.LimitReader(r, maxReply)).Decode(&reply); err != nil {
		return fmt.Errorf("%s: %w", method, gone(err))
	}
	if !reply.Success {
		return &remoteError{method, reply.Err}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Result, result); err != nil {
		return fmt.Errorf("%s: decode: %w", method, err)
	}
	return nil
}

// gone turns the ways in which a connection ends with its peer into errGone.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return errGone
	}
	return err
}
