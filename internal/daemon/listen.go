package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skep-dev/skep/internal/admin"
)

type listeners struct {
	gateway, registry, metrics, admin net.Listener
	taken                             bool // their servers close them
}

// listen opens all ports but the API's, and closes them again if the start fails.
func (d *Daemon) listen(ctx context.Context) (*listeners, error) {
	l := &listeners{}
	d.onStop("listeners", func(context.Context) error {
		if !l.taken {
			for _, x := range []net.Listener{l.gateway, l.registry, l.metrics, l.admin} {
				if x != nil {
					_ = x.Close()
				}
			}
		}
		return nil
	})
	for _, p := range []struct {
		flag, addr string
		to         *net.Listener
	}{
		{"listen", d.cfg.Listen, &l.gateway},
		{"registry-listen", d.cfg.RegistryListen, &l.registry},
		{"metrics-listen", d.cfg.MetricsListen, &l.metrics},
	} {
		got, err := new(net.ListenConfig).Listen(ctx, "tcp", p.addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return l, errTaken(p.flag, p.addr)
		}
		if err != nil {
			return l, fmt.Errorf("--%s: %w", p.flag, err)
		}
		*p.to = got
	}
	var err error
	l.admin, err = admin.Listen(ctx, filepath.Join(d.cfg.Run, adminSocket))
	return l, err
}

func errTaken(flag, addr string) error {
	return fmt.Errorf("--%s: %s is taken by another program; choose another port, such as --%s 127.0.0.1:0 for any", flag, addr, flag)
}

// safeServer has the time-outs that a server for local clients needs.
func safeServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
}

func metricsHandler(r *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"status": "ok"})
	})
	return mux
}
