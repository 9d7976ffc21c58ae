package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type totals struct {
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
}

func (t *totals) add(more totals) {
	t.Passed += more.Passed
	t.Failed += more.Failed
	t.Skipped += more.Skipped
}

func (t totals) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.Passed, t.Failed, t.Skipped)
}

// environmentReport sums one environment up.
type environmentReport struct {
	Environment string `json:"environment"`
	Release     string `json:"release,omitempty"` // of the kernel; empty for pure tests
	totals
	Seconds float64 `json:"seconds"`
	Counts  counts  `json:"counts,omitempty"`
	Problem string  `json:"problem,omitempty"` // what kept tests from running
}

func (r *environmentReport) add(o *outcome) {
	r.totals.add(o.totals())
	for what, n := range o.counts {
		r.Counts[what] += n
	}
}

// summary is the run's end: a table, the counts, and the totals alone on
// the last line.
func summary(w io.Writer, reports []*environmentReport) error {
	var all totals
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KERNEL\tRELEASE\tPASSED\tFAILED\tSKIPPED\tTIME\tCOUNTED")
	for _, r := range reports {
		var counted []string
		for _, what := range slices.Sorted(maps.Keys(r.Counts)) {
			counted = append(counted, fmt.Sprintf("%s: %d", what, r.Counts[what]))
		}
		release := r.Release
		if release == "" {
			release = "-"
		}
		took := time.Duration(r.Seconds * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%s\t%s\n",
			r.Environment, release, r.Passed, r.Failed, r.Skipped, took, strings.Join(counted, ", "))
		all.add(r.totals)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", all)
	return err
}

// writeReport leaves the same for programs.
func writeReport(file string, reports []*environmentReport) error {
	text, err := json.MarshalIndent(reports, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
