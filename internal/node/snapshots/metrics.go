package snapshots

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	c                        *Catalog
	saves, restores, stores  *prometheus.CounterVec
	recordings               prometheus.Counter
	foreign                  prometheus.Gauge
	copies, copyBytes, todos *prometheus.Desc
}

func newMetrics(c *Catalog, reg prometheus.Registerer) *metrics {
	m := &metrics{
		c: c,
		saves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_snapshot_saves_total", Help: "Snapshots made, by result: ok or failed.",
		}, []string{"result"}),
		restores: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_snapshot_restores_total", Help: "Snapshots restored, by result: ok, failed, damaged or foreign (the last three booted instead).",
		}, []string{"result"}),
		stores: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_snapshot_stores_total", Help: "Snapshots brought into the store, by result: ok or failed (and tried again).",
		}, []string{"result"}),
		recordings: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "skep_snapshot_recordings_total", Help: "Working sets recorded.",
		}),
		foreign: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "skep_snapshot_foreign", Help: "Snapshots in the store that belong to another version of this program.",
		}),
		copies:    prometheus.NewDesc("skep_snapshot_copies", "Snapshots on this machine as files.", nil, nil),
		copyBytes: prometheus.NewDesc("skep_snapshot_copy_bytes", "Disk space of those files.", nil, nil),
		todos:     prometheus.NewDesc("skep_snapshot_unstored", "Snapshots that are not in the store yet.", nil, nil),
	}
	for _, r := range []string{"ok", "failed", "damaged", "foreign"} {
		m.restores.WithLabelValues(r)
	}
	if reg != nil {
		reg.MustRegister(m.saves, m.restores, m.stores, m.recordings, m.foreign, m)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.copies
	ch <- m.copyBytes
	ch <- m.todos
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	var n, bytes, todo int64
	m.c.mu.Lock()
	for _, l := range m.c.copies {
		if !l.dead {
			n++
			bytes += l.rec.Bytes
		}
		if l.dirty() {
			todo++
		}
	}
	m.c.mu.Unlock()
	for d, v := range map[*prometheus.Desc]int64{m.copies: n, m.copyBytes: bytes, m.todos: todo} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
}
