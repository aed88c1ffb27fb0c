package node

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	pool *prometheus.CounterVec // starts of revisions that have a pool, by result
}

// Results of a start that asks the pool.
const (
	poolTaken  = "taken"
	poolEmpty  = "empty"
	poolFailed = "failed"
)

func newMetrics(n *Node, reg prometheus.Registerer) *metrics {
	m := &metrics{pool: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "skep_pool_starts_total",
		Help: "Starts of revisions that have a pool: a prepared sandbox was taken, there was none (empty), or it did not start (failed).",
	}, []string{"result"})}
	for _, r := range []string{poolTaken, poolEmpty, poolFailed} {
		m.pool.WithLabelValues(r)
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, read func() (int, int64), bytes bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			sandboxes, memory := read()
			if bytes {
				return float64(memory)
			}
			return float64(sandboxes)
		})
	}
	reg.MustRegister(m.pool,
		gauge("skep_prepared_sandboxes", "Sandboxes that are prepared to be restored.", n.pool.held, false),
		gauge("skep_prepared_bytes", "Memory of sandboxes that are prepared to be restored.", n.pool.held, true))
	return m
}
