package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the gateway's Prometheus metrics. All that is labelled by revision goes
// away with the revision, which bounds the number of series.
type metrics struct {
	g          *Gateway
	requests   *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	dialErrors *prometheus.CounterVec
	coldStarts *prometheus.CounterVec
	phases     *prometheus.HistogramVec
	unrouted   *prometheus.CounterVec

	inFlight, queued, instances *prometheus.Desc
}

// revisionMetrics are looked up once, not per request.
type revisionMetrics struct {
	classes    [6]prometheus.Counter // by hundreds; [0] is clients that went away
	latency    prometheus.Observer
	dialErrors prometheus.Counter
}

func newMetrics(g *Gateway, reg prometheus.Registerer) *metrics {
	by := []string{"namespace", "revision"}
	m := &metrics{
		g: g,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_requests_total", Help: "Requests by class of the response's status; gone: the client left first.",
		}, append(by, "code_class")),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skep_request_duration_seconds", Help: "Time from a request's arrival to the last byte of its response.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, by),
		dialErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_dial_errors_total", Help: "Failed connections to instances.",
		}, by),
		coldStarts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_cold_starts_total", Help: "Instances started, by kind: booted or restored.",
		}, append(by, "kind")),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skep_cold_start_phase_seconds", Help: "Time of each phase of an instance's start.",
			Buckets: prometheus.ExponentialBuckets(.0005, 2, 16),
		}, []string{"kind", "phase"}),
		unrouted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_unrouted_requests_total", Help: "Requests without a revision to go to.",
		}, []string{"code_class"}),
		inFlight:  prometheus.NewDesc("skep_requests_in_flight", "Requests at instances.", by, nil),
		queued:    prometheus.NewDesc("skep_requests_queued", "Requests that wait for an instance.", by, nil),
		instances: prometheus.NewDesc("skep_instances", "Instances that take requests.", by, nil),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.latency, m.dialErrors, m.coldStarts, m.phases, m.unrouted, m)
	}
	return m
}

// Describe implements prometheus.Collector for what is read when asked.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.inFlight
	ch <- m.queued
	ch <- m.instances
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	now := m.g.cfg.Now()
	m.g.revisions.Range(func(k, v any) bool {
		key, s := k.(RevisionKey), v.(*revision).stats(now)
		gauge := func(d *prometheus.Desc, n int) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), key.Namespace, key.Name)
		}
		gauge(m.inFlight, s.InFlight)
		gauge(m.queued, s.Queued)
		gauge(m.instances, s.Instances)
		return true
	})
}

func (m *metrics) forRevision(key RevisionKey) *revisionMetrics {
	r := &revisionMetrics{
		latency:    m.latency.WithLabelValues(key.Namespace, key.Name),
		dialErrors: m.dialErrors.WithLabelValues(key.Namespace, key.Name),
	}
	r.classes[0] = m.requests.WithLabelValues(key.Namespace, key.Name, "gone")
	for i := 1; i < len(r.classes); i++ {
		r.classes[i] = m.requests.WithLabelValues(key.Namespace, key.Name, classOf(i*100))
	}
	return r
}

func (m *metrics) forget(key RevisionKey) {
	l := prometheus.Labels{"namespace": key.Namespace, "revision": key.Name}
	m.requests.DeletePartialMatch(l)
	m.latency.DeletePartialMatch(l)
	m.dialErrors.DeletePartialMatch(l)
	m.coldStarts.DeletePartialMatch(l)
}

func (m *metrics) started(key RevisionKey, s StartInfo) {
	if s.Kind == Adopted || s.Kind == "" {
		return
	}
	m.coldStarts.WithLabelValues(key.Namespace, key.Name, string(s.Kind)).Inc()
	for _, p := range s.Phases {
		m.phases.WithLabelValues(string(s.Kind), p.Name).Observe(p.Took.Seconds())
	}
}

func (r *revisionMetrics) observe(status int, took time.Duration) {
	class := status / 100
	if status == 499 || class < 1 || class > 5 {
		class = 0
	}
	r.classes[class].Inc()
	r.latency.Observe(took.Seconds())
}

func classOf(status int) string { return strconv.Itoa(status/100) + "xx" }
