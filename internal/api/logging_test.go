package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// It is not parallel: the libraries' loggers are the process's.
func TestLibrariesLogThroughSlog(t *testing.T) {
	var out bytes.Buffer
	routeLibraryLogs(slog.New(slog.NewTextHandler(&out, nil)))
	klog.InfoS("chatter")
	klog.Warning("klog chatter")
	klog.ErrorS(errors.New("why"), "klog trouble", "key", "value")
	klog.Errorf("told to stop: context canceled")
	klog.ErrorS(fmt.Errorf("put: %w", context.Canceled), "canceled")
	logrus.Info("kine chatter")
	logrus.Error("kine trouble")
	text := out.String()
	if strings.Contains(text, "chatter") || strings.Contains(text, "canceled") {
		t.Errorf("noise: %s", text)
	}
	for _, want := range []string{`level=WARN msg="klog trouble"`, "key=value", "err=why", `level=WARN msg="kine trouble"`} {
		if !strings.Contains(text, want) {
			t.Errorf("want %s in %s", want, text)
		}
	}
}
