package api

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-logr/logr"
	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// The libraries below log through process-wide loggers (klog, logrus), which
// may be set only once and before they are used. They are pointed at this
// variable; the newest server's logger is in it.
var (
	libraryLog     atomic.Pointer[slog.Logger]
	libraryLogOnce sync.Once
)

func routeLibraryLogs(log *slog.Logger) {
	libraryLog.Store(log)
	libraryLogOnce.Do(func() {
		klog.SetLoggerWithOptions(logr.FromSlogHandler(libraryHandler{}), klog.ContextualLogger(true))
		logrus.SetOutput(io.Discard)
		logrus.AddHook(logrusHook{})
	})
}

// libraryHandler hands klog's records on, each a level lower: what a library
// calls information is debugging here, and its errors are mostly retried.
type libraryHandler struct {
	attrs []slog.Attr
}

func lower(level slog.Level) slog.Level {
	switch {
	case level >= slog.LevelError:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (libraryHandler) Enabled(ctx context.Context, level slog.Level) bool {
	// klog's V(1) and above arrive below slog.LevelInfo: never wanted.
	return level >= slog.LevelInfo && libraryLog.Load().Enabled(ctx, lower(level))
}

func (h libraryHandler) Handle(ctx context.Context, record slog.Record) error {
	level := lower(record.Level)
	if toldToStop(record) {
		level = slog.LevelDebug // no news
	}
	if !libraryLog.Load().Enabled(ctx, level) {
		return nil
	}
	out := slog.NewRecord(record.Time, level, record.Message, record.PC)
	out.AddAttrs(h.attrs...)
	record.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(a)
		return true
	})
	return libraryLog.Load().Handler().Handle(ctx, out)
}

// toldToStop reports whether a record is about something cancelled, as much is
// when the server is closed.
func toldToStop(record slog.Record) bool {
	cancelled := strings.Contains(record.Message, context.Canceled.Error())
	record.Attrs(func(a slog.Attr) bool {
		cancelled = cancelled || a.Key == "err" && strings.Contains(a.Value.String(), context.Canceled.Error())
		return !cancelled
	})
	return cancelled
}

func (h libraryHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return libraryHandler{attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

func (h libraryHandler) WithGroup(string) slog.Handler { return h }

// logrusHook does the same for kine.
type logrusHook struct{}

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (logrusHook) Fire(entry *logrus.Entry) error {
	level := slog.LevelDebug
	if entry.Level <= logrus.WarnLevel && !strings.Contains(entry.Message, context.Canceled.Error()) {
		level = slog.LevelWarn
	}
	libraryLog.Load().Log(context.Background(), level, entry.Message, "component", "kine")
	return nil
}
