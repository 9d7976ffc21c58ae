package cli

import (
	"cmp"
	"context"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) gcCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "gc",
		Short: "Remove what is left of attachments that have ended",
		Long: `Remove Holdfast's records of attachments that have ended: their interface is
gone, another root detached them, or the process that made them was killed half
way. Pins of shared hooks' chains that are attached nowhere are removed, too,
whichever tool left them; those of other network namespaces are shown and stay.
What is attached stays attached.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			state, err := a.look(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			stale, err := state.GC(c.Context(), dryRun)
			if err != nil {
				return err
			}
			pins, err := a.leftPins(c.Context(), dryRun)
			if err != nil {
				return err
			}
			return a.printGC(stale, pins, dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be removed")
	return c
}

// leftPins removes the pins of chains that are attached nowhere, or only tells.
func (a *app) leftPins(ctx context.Context, dryRun bool) ([]libxdp.Cleaned, error) {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	chains, err := a.chains()
	if err != nil {
		return nil, err
	}
	defer chains.Close()
	if dryRun {
		return chains.Leftovers(ctx, ns, 0)
	}
	return chains.Clean(ctx, ns, 0)
}

func (a *app) printGC(stale []arbiter.Stale, pins []libxdp.Cleaned, dryRun bool) error {
	if a.json() {
		if pins == nil {
			pins = []libxdp.Cleaned{}
		}
		return a.printJSON("gc", map[string]any{"dry_run": dryRun, "stale": stale, "pins": pins})
	}
	var rows [][]string
	for _, s := range stale {
		rows = append(rows, []string{s.Entry, cmp.Or(s.Name, "-"), cmp.Or(s.Interface, "-"), s.Why})
	}
	if len(rows) > 0 {
		a.table([]string{"ENTRY", "NAME", "INTERFACE", "WHY"}, rows)
	}
	var pinRows [][]string
	removed := 0
	for _, p := range pins {
		what := "kept"
		switch {
		case p.Removed && dryRun:
			what = "would be removed"
		case p.Removed:
			what = "removed"
			removed++
		}
		pinRows = append(pinRows, []string{p.Path, what, p.Reason})
	}
	if len(pinRows) > 0 {
		a.table([]string{"PINS", "DONE", "WHY"}, pinRows)
	}
	if dryRun {
		a.log.Info("nothing was removed", "stale", len(rows))
	} else {
		a.log.Info("removed stale entries", "count", len(rows), "pins", removed)
	}
	return nil
}
