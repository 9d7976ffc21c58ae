package cli

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
)

func (a *app) gcCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "gc",
		Short: "Remove what is left of attachments that have ended",
		Long: `Remove Holdfast's records of attachments that have ended: their interface is
gone, another root detached them, or the process that made them was killed half
way. What is attached stays attached.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			state, err := arbiter.OpenReadOnly(a.stateOptions())
			if err != nil {
				return err
			}
			defer state.Close()
			stale, err := state.GC(c.Context(), dryRun)
			if err != nil {
				return err
			}
			return a.printGC(stale, dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be removed")
	return c
}

func (a *app) printGC(stale []arbiter.Stale, dryRun bool) error {
	if a.json() {
		return a.printJSON("gc", map[string]any{"dry_run": dryRun, "stale": stale})
	}
	var rows [][]string
	for _, s := range stale {
		rows = append(rows, []string{s.Entry, cmp.Or(s.Name, "-"), cmp.Or(s.Interface, "-"), s.Why})
	}
	if len(rows) > 0 {
		a.table([]string{"ENTRY", "NAME", "INTERFACE", "WHY"}, rows)
	}
	if dryRun {
		a.log.Info("nothing was removed", "stale", len(rows))
	} else {
		a.log.Info("removed stale entries", "count", len(rows))
	}
	return nil
}
