package node

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"meshnode/node/control"
)

// metrics are what the node counts, in Prometheus' terms: seconds and bytes.
type metrics struct {
	registry *prometheus.Registry

	events    prometheus.Histogram
	moves     *prometheus.CounterVec
	decisions *prometheus.CounterVec
	blackout  prometheus.Histogram
	fault     prometheus.Histogram
	pageBytes *prometheus.CounterVec
}

func newMetrics(n *Node) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshnode_event_seconds", Help: "Time that workers took for an event.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshnode_migrations_total", Help: "Moves that ended here, by direction and result.",
		}, []string{"direction", "result"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshnode_placement_decisions_total", Help: "Decisions on where workers should be, by action and reason.",
		}, []string{"action", "reason"}),
		blackout: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshnode_blackout_seconds", Help: "Time from freeze to running, of moves away from here.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 16),
		}),
		fault: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshnode_fault_seconds", Help: "Time from a page fault to the page's arrival.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 2, 20),
		}),
		pageBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshnode_page_bytes_total", Help: "Bytes of workers' memory on the wire, by direction.",
		}, []string{"direction"}),
	}
	m.registry.MustRegister(
		m.events, m.moves, m.decisions, m.blackout, m.fault, m.pageBytes,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&population{node: n},
	)
	return m
}

func (m *metrics) event(d time.Duration) { m.events.Observe(d.Seconds()) }

// handler serves the metrics in the text format.
func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}

// A population counts members and workers at the moment it is asked.
type population struct{ node *Node }

var (
	membersDesc = prometheus.NewDesc("meshnode_members", "Nodes of the mesh, by state.", []string{"state"}, nil)
	workersDesc = prometheus.NewDesc("meshnode_workers", "Workers at home here, by state.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (p *population) Describe(ch chan<- *prometheus.Desc) {
	ch <- membersDesc
	ch <- workersDesc
}

// Collect implements prometheus.Collector.
func (p *population) Collect(ch chan<- prometheus.Metric) {
	members := map[string]int{"alive": 0}
	for _, m := range p.node.mesh.Members() {
		members[m.State.String()]++
	}
	workers := map[string]int{control.StateRunning: 0}
	for _, w := range p.node.locals() {
		workers[w.describe().State]++
	}
	for state, n := range members {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), state)
	}
	for state, n := range workers {
		ch <- prometheus.MustNewConstMetric(workersDesc, prometheus.GaugeValue, float64(n), state)
	}
}
