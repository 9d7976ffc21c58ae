// Package metrics counts what the daemon does, and tells Prometheus.
//
// Every name and label is in docs/metrics.md. What clients choose becomes a label's
// value nowhere, except for names of interfaces, which are bounded in number and length:
// nobody without privilege can make a server of metrics keep more than it expects.
package metrics

import (
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Other is the label of what is beyond a bound, taken together.
const Other = "other"

// Results of requests that are not the names of errors.
const (
	OK = "ok"
	// HungUp is a request whose client did not wait for the answer.
	HungUp = "hung_up"
)

// Options say what there is to tell.
type Options struct {
	// Version is the daemon's.
	Version string
	// Methods, Results and Conflicts are all values that the labels have: what is none of
	// them is counted as other. Events and Drift are those that are 0 at first.
	Methods, Results, Conflicts, Events, Drift []string
	// Interfaces is how many are told of each by itself, [DefaultInterfaces] where it
	// is 0. The others are one more.
	Interfaces int
	// State reads what gauges tell. It is called at each scrape, by several goroutines
	// at once.
	State func() State
}

// DefaultInterfaces is how many interfaces are told of where nobody says.
const DefaultInterfaces = 100

const (
	// maxRules is how many of the policy's rules are told of, over all of its versions.
	maxRules = 100
	// maxLabel is how long a value may be, in characters.
	maxLabel = 64
)

// Metrics are counters. A nil one counts nothing, so that who counts need not ask.
type Metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	conflicts *prometheus.CounterVec
	denials   *prometheus.CounterVec
	events    *prometheus.CounterVec
	drift     *prometheus.CounterVec
	restores  *prometheus.CounterVec
	reloads   *prometheus.CounterVec
	reloaded  prometheus.Gauge
	rules     prometheus.Gauge
	dropped   prometheus.Counter
	errors    prometheus.Counter

	methods, results, reasons known
	denying                   bounded
}

// durationBuckets are from what answers out of memory to what waits for others' changes.
var durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// New makes counters, with a registry of their own.
func New(o Options) *Metrics {
	if o.Interfaces == 0 {
		o.Interfaces = DefaultInterfaces
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: counter("holdfast_requests_total", "Calls that clients have made.", "method", "result"),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_request_duration_seconds", Help: "Time until a call's first reply.", Buckets: durationBuckets,
		}, []string{"method"}),
		conflicts: counter("holdfast_conflicts_total", "Calls that were refused because of what somebody else holds or has changed.", "reason"),
		denials:   counter("holdfast_denials_total", "Requests that the policy denied.", "rule"),
		events:    counter("holdfast_events_total", "Events, as holdfast watch shows them.", "kind"),
		drift:     counter("holdfast_drift_total", "Hooks that were found otherwise than Holdfast had left them.", "kind"),
		restores:  counter("holdfast_restores_total", "Attempts to make a hook as it is declared, where it was not.", "result"),
		reloads:   counter("holdfast_policy_reloads_total", "Attempts to read the policy anew.", "result"),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_policy_loaded_timestamp_seconds", Help: "When the policy in force was read.",
		}),
		rules: prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_policy_rules", Help: "Rules of the policy in force."}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_watchers_dropped_total", Help: "Clients that lost their place in the stream of events because they did not read it.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_state_errors_total", Help: "Failures to read the state, or to bring it in line with what is attached.",
		}),
		methods: set(o.Methods), results: set(o.Results, OK, HungUp), reasons: set(o.Conflicts),
		denying: bounded{most: maxRules},
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "holdfast_build_info", Help: "1, with the version of the daemon and of Go.",
		ConstLabels: prometheus.Labels{"version": label(o.Version), "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(
		m.requests, m.durations, m.conflicts, m.denials, m.events, m.drift, m.restores, m.reloads, m.reloaded, m.rules, m.dropped, m.errors,
		build, &collector{o: o},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	// What has not happened yet is 0, so that the first time is an increase.
	for _, method := range o.Methods {
		m.requests.WithLabelValues(method, OK)
		m.durations.WithLabelValues(method)
	}
	zero(m.conflicts, o.Conflicts...)
	zero(m.events, o.Events...)
	zero(m.drift, o.Drift...)
	zero(m.restores, "ok", "failed")
	zero(m.reloads, "ok", "failed")
	return m
}

func zero(c *prometheus.CounterVec, values ...string) {
	for _, v := range values {
		c.WithLabelValues(v)
	}
}

// Request counts a call, with the name of its error or [OK] or [HungUp].
func (m *Metrics) Request(method, result string, took time.Duration) {
	if m == nil {
		return
	}
	method = m.methods.value(method)
	m.requests.WithLabelValues(method, m.results.value(result)).Inc()
	if result != HungUp {
		m.durations.WithLabelValues(method).Observe(took.Seconds())
	}
}

// Conflict counts a call that somebody else's doing was in the way of.
func (m *Metrics) Conflict(reason string) {
	if m != nil {
		m.conflicts.WithLabelValues(m.reasons.value(reason)).Inc()
	}
}

// Denied counts what a rule of the policy denies, or no rule allows where it is empty.
func (m *Metrics) Denied(rule string) {
	if m == nil {
		return
	}
	if rule == "" {
		rule = "none"
	}
	m.denials.WithLabelValues(m.denying.value(label(rule))).Inc()
}

// Event counts an event.
func (m *Metrics) Event(kind string) {
	if m != nil {
		m.events.WithLabelValues(kind).Inc()
	}
}

// Drift counts a hook that is otherwise than it was left.
func (m *Metrics) Drift(kind string) {
	if m != nil {
		m.drift.WithLabelValues(kind).Inc()
	}
}

// Restored counts an attempt to make a hook as it is declared.
func (m *Metrics) Restored(err error) {
	if m != nil {
		m.restores.WithLabelValues(outcome(err)).Inc()
	}
}

// Loaded says that the policy has been read, at the start.
func (m *Metrics) Loaded(rules int) {
	if m != nil {
		m.rules.Set(float64(rules))
		m.reloaded.SetToCurrentTime()
	}
}

// Reloaded counts an attempt to read the policy anew, which has so many rules then.
func (m *Metrics) Reloaded(rules int, err error) {
	if m == nil {
		return
	}
	m.reloads.WithLabelValues(outcome(err)).Inc()
	if err == nil {
		m.Loaded(rules)
	}
}

// Dropped counts a listener to events who lost its place.
func (m *Metrics) Dropped() {
	if m != nil {
		m.dropped.Inc()
	}
}

// StateError counts a failure to read the state, or to put it right.
func (m *Metrics) StateError() {
	if m != nil {
		m.errors.Inc()
	}
}

func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}

// known are the values that a label may have.
type known map[string]bool

func set(values []string, more ...string) known {
	k := known{}
	for _, v := range append(more, values...) {
		k[v] = true
	}
	return k
}

func (k known) value(v string) string {
	if k[v] {
		return v
	}
	return Other
}

// bounded are the first values of a label that there were.
type bounded struct {
	most  int
	mutex sync.Mutex
	seen  map[string]bool
}

func (b *bounded) value(v string) string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if !b.seen[v] {
		if len(b.seen) == b.most {
			return Other
		}
		if b.seen == nil {
			b.seen = map[string]bool{}
		}
		b.seen[v] = true
	}
	return v
}

// label makes a value of a name that somebody else chose: it is short, and has nothing in
// it that can't be printed. A registry refuses all it has where one value is no UTF-8.
func label(name string) string {
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(name, string(unicode.ReplacementChar)))
	if runes := []rune(clean); len(runes) > maxLabel {
		return string(runes[:maxLabel-1]) + "…"
	}
	return clean
}
