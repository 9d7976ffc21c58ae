package metrics

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

// busy are metrics of a daemon to which all has happened.
func busy(state State) *Metrics {
	m := New(Options{
		Version: "1.0", Methods: []string{"Attach"}, Results: []string{"Conflict"}, Conflicts: []string{"name"},
		Events: []string{"attached"}, Drift: []string{"detached"}, State: func() State { return state },
	})
	m.Loaded(3)
	m.Request("Attach", OK, time.Millisecond)
	m.Request("Attach", "Conflict", time.Millisecond)
	m.Conflict("name")
	m.Denied("")
	m.Event("attached")
	m.Drift("detached")
	m.Restored(nil)
	m.Reloaded(4, nil)
	m.Dropped()
	m.StateError()
	return m
}

var some = State{
	Readable: true, Clients: 2, Users: 1, Leases: 1, Drifted: 1, Undone: 1,
	Hooks: []Hook{
		{Interface: "eth0", Netns: "4026531840", Engine: "live", Members: []string{"permanent", "held"}, Run: &Run{Count: 10, Time: time.Second}},
		{Interface: "eth1", Netns: "4026531840", Engine: "live", Members: []string{"permanent"}},
	},
	Attachments: []Attachment{{Mode: "native", Owner: "holdfast", Held: "link", Lifetime: "permanent"}},
}

func gather(t *testing.T, m *Metrics) []*dto.MetricFamily {
	t.Helper()
	all, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// own leaves out what is the client library's.
func own(all []*dto.MetricFamily) []*dto.MetricFamily {
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "holdfast_") })
}

func TestNamesAreAsPrometheusWantsThem(t *testing.T) {
	problems, err := promlint.NewWithMetricFamilies(own(gather(t, busy(some)))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// row is a metric in the document: its name, type and labels.
var row = regexp.MustCompile("(?m)^\\| `(holdfast_[a-z_]+)` \\| ([a-z]+) \\| ([a-z`, ]*)\\|")

func TestTheDocumentHasAllMetricsAndNoOthers(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, found := range row.FindAllStringSubmatch(string(text), -1) {
		documented[found[1]] = found[2] + " " + strings.NewReplacer("`", "", ",", "").Replace(strings.TrimSpace(found[3]))
	}
	for _, f := range own(gather(t, busy(some))) {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		want := strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, " ")
		if got, ok := documented[f.GetName()]; !ok {
			t.Errorf("%s (%s) is not documented", f.GetName(), want)
		} else if got != want {
			t.Errorf("%s is documented as %q, and is %q", f.GetName(), got, want)
		}
		delete(documented, f.GetName())
		for _, l := range labels {
			if !regexp.MustCompile("(?m)^\\| (`[a-z]+`, )?`"+l+"`").Match(text) && f.GetName() != "holdfast_build_info" {
				t.Errorf("the label %s of %s is not documented", l, f.GetName())
			}
		}
	}
	for name := range documented {
		t.Errorf("%s is documented, and is not there", name)
	}
}

func TestWhatHappensIsCounted(t *testing.T) {
	m := busy(some)
	m.Reloaded(0, errors.New("no"))
	m.Restored(errors.New("no"))
	for _, c := range []struct {
		what prometheus.Collector
		want float64
	}{
		{m.requests.WithLabelValues("Attach", OK), 1},
		{m.requests.WithLabelValues("Attach", "Conflict"), 1},
		{m.conflicts.WithLabelValues("name"), 1},
		{m.denials.WithLabelValues("none"), 1},
		{m.drift.WithLabelValues("detached"), 1},
		{m.restores.WithLabelValues("ok"), 1},
		{m.restores.WithLabelValues("failed"), 1},
		{m.reloads.WithLabelValues("failed"), 1},
		{m.rules, 4},
		{m.dropped, 1},
	} {
		if got := testutil.ToFloat64(c.what); got != c.want {
			t.Errorf("got %g, want %g", got, c.want)
		}
	}
	want := `
# HELP holdfast_members Members of owned hooks.
# TYPE holdfast_members gauge
holdfast_members{interface="eth0",lifetime="held",netns="4026531840"} 1
holdfast_members{interface="eth0",lifetime="permanent",netns="4026531840"} 1
holdfast_members{interface="eth1",lifetime="permanent",netns="4026531840"} 1
# HELP holdfast_hook_run_seconds_total Time that an owned hook's program has run, while the kernel counts it.
# TYPE holdfast_hook_run_seconds_total counter
holdfast_hook_run_seconds_total{interface="eth0",netns="4026531840"} 1
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "holdfast_members", "holdfast_hook_run_seconds_total"); err != nil {
		t.Error(err)
	}
}

func TestNobodyCountsWhereNobodyAsks(t *testing.T) {
	var m *Metrics
	m.Loaded(1)
	m.Request("Attach", OK, 0)
	m.Conflict("name")
	m.Denied("a")
	m.Event("attached")
	m.Drift("detached")
	m.Restored(nil)
	m.Reloaded(1, nil)
	m.Dropped()
	m.StateError()
}

// Whatever names there are, there are only so many series, and a scrape works.
func TestNamesOfOthersAreBounded(t *testing.T) {
	var s State
	for i := range 5000 {
		s.Hooks = append(s.Hooks, Hook{
			Interface: fmt.Sprintf("if%04d\xff\"\n", i), Netns: fmt.Sprint(i), Engine: "live", Members: []string{"held"}, Run: &Run{Count: 1, Time: time.Second},
		})
	}
	s.Hooks = append(s.Hooks, Hook{Interface: strings.Repeat("é", 5000), Netns: "0", Engine: "live", Members: []string{"held"}})
	m := busy(s)
	for i := range 5000 {
		name := fmt.Sprintf("evil%d\x00\n\"} 1\nup{x=\"", i)
		m.Request(name, name, time.Second)
		m.Conflict(name)
		m.Denied(name)
	}
	most := map[string]int{
		"holdfast_members": DefaultInterfaces + 1, "holdfast_hook_runs_total": DefaultInterfaces + 1,
		"holdfast_denials_total": maxRules + 1, "holdfast_conflicts_total": 2, "holdfast_requests_total": 3,
		"holdfast_request_duration_seconds": 2,
	}
	for _, f := range gather(t, m) {
		if n, ok := most[f.GetName()]; ok && len(f.GetMetric()) != n {
			t.Errorf("%s has %d series, want %d", f.GetName(), len(f.GetMetric()), n)
		}
		for _, one := range f.GetMetric() {
			for _, l := range one.GetLabel() {
				if v := l.GetValue(); len([]rune(v)) > maxLabel || !utf8.ValidString(v) || strings.ContainsAny(v, "\n\x00") {
					t.Errorf("%s has %s=%q", f.GetName(), l.GetName(), v)
				}
			}
		}
		// Nothing is lost.
		sum := 0.0
		for _, one := range f.GetMetric() {
			sum += one.GetGauge().GetValue() + one.GetCounter().GetValue()
		}
		if want := map[string]float64{"holdfast_members": 5001, "holdfast_hook_runs_total": 5000, "holdfast_denials_total": 5001}[f.GetName()]; want != 0 && sum != want {
			t.Errorf("%s is %g together, want %g", f.GetName(), sum, want)
		}
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", Path, nil))
	if w.Code != 200 || strings.Contains(w.Body.String(), "\nup{") {
		t.Errorf("a scrape is answered with %d", w.Code)
	}
}

func FuzzLabel(f *testing.F) {
	f.Add("eth0")
	f.Add("\xff\x00\u202e")
	f.Fuzz(func(t *testing.T, name string) {
		got := label(name)
		if !utf8.ValidString(got) || len([]rune(got)) > maxLabel || label(got) != got {
			t.Errorf("%q became %q, and that %q", name, got, label(got))
		}
	})
}
