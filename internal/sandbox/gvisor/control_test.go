package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// server answers one call on a control socket with what answer returns.
func server(t *testing.T, answer func(request map[string]any) string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var request map[string]any
				if err := json.NewDecoder(c).Decode(&request); err != nil {
					return
				}
				c.Write([]byte(answer(request)))
			}()
		}
	}()
	return path
}

func TestCall(t *testing.T) {
	for _, test := range []struct {
		name, answer, err string
		gone              bool
	}{
		{name: "success", answer: `{"success":true,"err":"","result":7}`},
		{name: "remote error", answer: `{"success":false,"err":"no such container","result":null}`, err: "no such container"},
		{name: "silence", answer: "", gone: true},
		{name: "half an answer", answer: `{"success":tr`, gone: true},
		{name: "not JSON", answer: `<html>`, err: "invalid character"},
		{name: "wrong type", answer: `{"success":true,"result":"seven"}`, err: "decode"},
		{name: "endless", answer: `{"err":"` + strings.Repeat("x", maxReply) + `"}`, gone: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := server(t, func(request map[string]any) string {
				if request["method"] != "some.Method" || request["arg"] != "argument" {
					return `{"success":false,"err":"bad request"}`
				}
				return test.answer
			})
			var n int
			err := call(t.Context(), path, "some.Method", "argument", &n)
			switch {
			case test.gone:
				if !errors.Is(err, errGone) {
					t.Errorf("error %v, want %v", err, errGone)
				}
			case test.err != "":
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q in it", err, test.err)
				}
			case err != nil || n != 7:
				t.Errorf("result %d, error %v", n, err)
			}
		})
	}
}

func TestCallNobody(t *testing.T) {
	err := call(t.Context(), filepath.Join(t.TempDir(), "none"), "m", nil, nil)
	if !errors.Is(err, errGone) {
		t.Errorf("error %v, want %v", err, errGone)
	}
}

func TestCallCancelled(t *testing.T) {
	asked := make(chan struct{})
	path := server(t, func(map[string]any) string {
		close(asked)
		<-t.Context().Done()
		return ""
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if err := call(ctx, path, "m", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"success":true,"err":"","result":7}`))
	f.Add([]byte(`{"success":false,"err":"x"}`))
	f.Fuzz(func(t *testing.T, reply []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			theirs.SetDeadline(time.Now().Add(time.Second))
			theirs.Write(reply)
			theirs.Close()
		}()
		var n int
		_ = readReply(ours, "m", &n) // no panic, no hang
	})
}
