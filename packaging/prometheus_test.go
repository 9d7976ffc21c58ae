package packaging

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/vm"
)

// promtool runs Prometheus's own tool in the directory.
func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	tools, err := vm.FetchPrometheus(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(tools, "promtool"), args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestTheAlertsFireWhenTheyShould(t *testing.T) {
	promtool(t, "prometheus", "check", "rules", "--lint-fatal", "holdfast.rules.yml")
	promtool(t, "prometheus", "test", "rules", "holdfast.rules.test.yml")
}

// metricName is one of Holdfast's own, with what a histogram adds.
var metricName = regexp.MustCompile(`\bholdfast_[a-z_]+`)

// documented are the metrics of docs/metrics.md, which a test of internal/metrics holds
// against the registry.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(holdfast_[a-z_]+)` \\| (histogram)?").FindAllStringSubmatch(string(b), -1) {
		names[m[1]] = true
		if m[2] != "" {
			names[m[1]+"_bucket"] = true
		}
	}
	return names
}

func TestTheAlertsAreOfMetricsThatThereAre(t *testing.T) {
	b, err := os.ReadFile("prometheus/holdfast.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	known := documented(t)
	text := strings.ReplaceAll(string(b), `"holdfast_(denials|conflicts)_total"`, "holdfast_denials_total holdfast_conflicts_total")
	for _, name := range metricName.FindAllString(text, -1) {
		if !known[name] {
			t.Errorf("there is no %s", name)
		}
	}
	doc, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^  - alert: (.*)$`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(doc), "| `"+m[1]+"` |") {
			t.Errorf("the alert %s is not documented", m[1])
		}
	}
}

func TestTheDashboardAsksForMetricsThatThereAre(t *testing.T) {
	var d Dashboard
	if err := json.Unmarshal([]byte(GrafanaDashboard), &d); err != nil {
		t.Fatal(err)
	}
	if d.Title != "Holdfast" || len(d.Panels) < 10 {
		t.Fatalf("the dashboard %q has %d panels", d.Title, len(d.Panels))
	}
	known, used := documented(t), map[string]bool{}
	rules := "groups:\n- name: panels\n  rules:\n"
	var taken []int
	for _, p := range d.Panels {
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("a panel says little: %+v", p)
		}
		if slices.Contains(taken, p.ID) {
			t.Errorf("two panels have the id %d", p.ID)
		}
		taken = append(taken, p.ID)
		for _, target := range p.Targets {
			for _, name := range metricName.FindAllString(target.Expr, -1) {
				used[name] = true
				if !known[name] {
					t.Errorf("%s asks for %s, which is not there", p.Title, name)
				}
			}
			expr, err := json.Marshal(target.Query(".+", "5m"))
			if err != nil {
				t.Fatal(err)
			}
			rules += fmt.Sprintf("  - {record: 'panel:%d:%s', expr: %s}\n", p.ID, target.RefID, expr)
		}
	}
	if len(used) < 12 {
		t.Errorf("no more than these are used: %v", used)
	}
	// Prometheus parses them all.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "panels.yml"), []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "check", "rules", "--lint=none", "panels.yml")
}
