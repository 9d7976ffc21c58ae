package metrics

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what there is at a moment.
type State struct {
	// Readable tells that the state could be read the last time.
	Readable bool
	// Hooks are all that Holdfast owns, in all network namespaces.
	Hooks []Hook
	// Attachments are the programs at interfaces of the daemon's own network namespace.
	Attachments []Attachment
	// Clients are connected, of so many Users. Leases are held by descriptors.
	Clients, Users, Leases int
	// Drifted are hooks that are not as they were left, though their interface is there, and Undone what is declared and
	// not made.
	Drifted, Undone int
}

// Hook is one that Holdfast owns.
type Hook struct {
	Interface, Netns, Engine string
	// Members are the lifetimes of its members.
	Members []string
	// Run is what the kernel has counted of its program, nil where it does not count.
	Run *Run
}

// Run is what the kernel counts of a program while kernel.bpf_stats_enabled is 1.
type Run struct {
	Count uint64
	Time  time.Duration
}

// Attachment says of a program at an interface in which mode it is, whether it is
// Holdfast's, how it is held, and when it ends.
type Attachment struct {
	Mode, Owner, Held, Lifetime string
}

// collector tells the state.
type collector struct{ o Options }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	readable    = describe("holdfast_state_readable", "Whether the state could be read the last time.")
	hooks       = describe("holdfast_hooks", "Hooks that Holdfast owns, in all network namespaces.", "engine")
	attachments = describe("holdfast_attachments", "Programs at interfaces of the daemon's network namespace.", "mode", "owner", "held", "lifetime")
	members     = describe("holdfast_members", "Members of owned hooks.", "interface", "netns", "lifetime")
	runs        = describe("holdfast_hook_runs_total", "Runs of an owned hook's program, while the kernel counts them.", "interface", "netns")
	runTime     = describe("holdfast_hook_run_seconds_total", "Time that an owned hook's program has run, while the kernel counts it.", "interface", "netns")
	leases      = describe("holdfast_leases", "Members that end with the process that holds them.")
	clients     = describe("holdfast_clients", "Clients that are connected.")
	users       = describe("holdfast_client_users", "Users whose clients are connected.")
	drifted     = describe("holdfast_drifted_hooks", "Owned hooks that are not as Holdfast has left them, without those whose interface is gone.")
	undone      = describe("holdfast_undone_declarations", "Declared hooks that are not made as declared yet.")
)

// Describe is a [prometheus.Collector]'s.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readable, hooks, attachments, members, runs, runTime, leases, clients, users, drifted, undone} {
		ch <- d
	}
}

// place is an interface as a label's values name it.
type place struct{ name, netns string }

// lifetimes is a place with one lifetime of members.
type lifetimes struct {
	place
	lifetime string
}

// Collect is a [prometheus.Collector]'s.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.o.State()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	is := 0
	if s.Readable {
		is = 1
	}
	gauge(readable, is)
	gauge(clients, s.Clients)
	gauge(users, s.Users)
	gauge(leases, s.Leases)
	gauge(drifted, s.Drifted)
	gauge(undone, s.Undone)
	byEngine, byKind := map[string]int{}, map[Attachment]int{}
	for _, h := range s.Hooks {
		byEngine[h.Engine]++
	}
	for engine, n := range byEngine {
		gauge(hooks, n, engine)
	}
	for _, a := range s.Attachments {
		byKind[a]++
	}
	for a, n := range byKind {
		gauge(attachments, n, a.Mode, a.Owner, a.Held, a.Lifetime)
	}
	byPlace, run := map[lifetimes]int{}, map[place]Run{}
	names := c.places(s.Hooks)
	for i, h := range s.Hooks {
		for _, lifetime := range h.Members {
			byPlace[lifetimes{names[i], lifetime}]++
		}
		if h.Run != nil {
			sum := run[names[i]]
			run[names[i]] = Run{sum.Count + h.Run.Count, sum.Time + h.Run.Time}
		}
	}
	for at, n := range byPlace {
		gauge(members, n, at.name, at.netns, at.lifetime)
	}
	for at, r := range run {
		ch <- prometheus.MustNewConstMetric(runs, prometheus.CounterValue, float64(r.Count), at.name, at.netns)
		ch <- prometheus.MustNewConstMetric(runTime, prometheus.CounterValue, r.Time.Seconds(), at.name, at.netns)
	}
}

// places are how the hooks' interfaces are named, in the hooks' order. They are sorted, so
// that the same ones are told of each time; those beyond the bound are one.
func (c *collector) places(all []Hook) []place {
	names := make([]place, len(all))
	for i, h := range all {
		names[i] = place{label(h.Interface), label(h.Netns)}
	}
	sorted := slices.SortedFunc(slices.Values(names), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.netns, b.netns))
	})
	sorted = slices.Compact(sorted)
	if len(sorted) <= c.o.Interfaces {
		return names
	}
	told := map[place]bool{}
	for _, p := range sorted[:c.o.Interfaces] {
		told[p] = true
	}
	for i, p := range names {
		if !told[p] {
			names[i] = place{name: Other}
		}
	}
	return names
}
