package gateway

import (
	"log/slog"
	"net/http"
	"time"
)

// Limits of the server that NewServer makes.
const (
	maxRequestHeader  = 64 << 10
	readHeaderTimeout = 10 * time.Second
	clientIdleTimeout = 2 * time.Minute
	maxStreams        = 250 // of an HTTP/2 connection
)

// NewServer makes the server for a gateway: HTTP/1.1 and HTTP/2 with prior
// knowledge on the same port, with limits against clients that are slow or
// send too much. There is no limit on a whole request here, because streams
// last: Revision.Timeout is that. Errors of the server, such as malformed
// requests, are logged at debug level, since anybody can cause them.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.Default()
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &p,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       clientIdleTimeout,
		MaxHeaderBytes:    maxRequestHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
