package packaging

import (
	_ "embed" // for the file below
	"strings"
)

// GrafanaDashboard is the dashboard for Grafana, a [Dashboard] in JSON.
//
//go:embed grafana/holdfast.json
var GrafanaDashboard string

// Dashboard is of one what is asked and drawn.
type Dashboard struct {
	Title  string  `json:"title"`
	Panels []Panel `json:"panels"`
}

// Panel is one of its panels. Type is stat for one number, and timeseries.
type Panel struct {
	ID          int      `json:"id"`
	Type        string   `json:"type"`
	Title       string   `json:"title"`
	Description string   `json:"description"`
	Targets     []Target `json:"targets"`
	FieldConfig struct {
		Defaults struct {
			Unit       string `json:"unit"`
			Thresholds struct {
				Steps []struct {
					Color string   `json:"color"`
					Value *float64 `json:"value"`
				} `json:"steps"`
			} `json:"thresholds"`
			Mappings []struct {
				Options map[string]struct {
					Text string `json:"text"`
				} `json:"options"`
			} `json:"mappings"`
			Custom struct {
				Stacking struct {
					Mode string `json:"mode"`
				} `json:"stacking"`
			} `json:"custom"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
}

// Target is a query, and what its lines are called, with labels in double braces.
type Target struct {
	RefID  string `json:"refId"`
	Expr   string `json:"expr"`
	Legend string `json:"legendFormat"`
}

// Query is the target's as Prometheus takes it, with Grafana's variables replaced.
func (t Target) Query(instance, interval string) string {
	return strings.NewReplacer("$instance", instance, "$__rate_interval", interval).Replace(t.Expr)
}
