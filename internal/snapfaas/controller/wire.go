package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// request is what a client sends.
type request struct {
	Function string          `json:"function"`
	Payload  json.RawMessage `json:"payload"`
}

// Statuses on the wire, SnapFaaS's own.
const (
	statusSent      = "SentToVM"
	statusNone      = "FunctionNotExist"
	statusExhausted = "ResourceExhausted"
	statusLaunch    = "LaunchFailed"
	statusFailed    = "ProcessRequestFailed"
	statusDropped   = "Dropped"
)

// response is what a client gets: a status alone as a string, the function's
// answer as an object {"SentToVM": "..."} whose value is a string of JSON.
type response struct {
	Status any    `json:"status"`
	Error  string `json:"error,omitempty"` // ours, for people
}

func parseRequest(b []byte) (request, error) {
	var r request
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("want {\"function\":...,\"payload\":...}: %w", err)
	}
	if r.Function == "" {
		return r, errors.New("function: must be set")
	}
	return r, nil
}

// answer is Invoke in the words of the wire.
func (c *Controller) answer(ctx context.Context, b []byte) (response, int) {
	r, err := parseRequest(b)
	if err != nil {
		return response{statusDropped, err.Error()}, http.StatusBadRequest
	}
	reply, err := c.Invoke(ctx, r.Function, r.Payload)
	if err != nil {
		status, code := statusOf(err)
		return response{status, err.Error()}, code
	}
	return response{Status: map[string]string{statusSent: string(reply)}}, http.StatusOK
}

// statusOf is an error's status on the wire and in HTTP.
func statusOf(err error) (string, int) {
	for _, s := range []struct {
		is     error
		status string
		code   int
	}{
		{ErrNoFunction, statusNone, http.StatusNotFound},
		{ErrExhausted, statusExhausted, http.StatusServiceUnavailable},
		{ErrLaunch, statusLaunch, http.StatusBadGateway},
		{ErrClosed, statusDropped, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, s.is) {
			return s.status, s.code
		}
	}
	return statusFailed, http.StatusBadGateway
}

// functionOf is NAME of the path /functions/NAME.
func functionOf(path string) (string, bool) {
	name, ok := strings.CutPrefix(path, "/functions/")
	return name, ok && name != "" && !strings.Contains(name, "/")
}
