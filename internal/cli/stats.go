package cli

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// hookStats is what was counted at a hook.
type hookStats struct {
	Interface string `json:"interface"`
	Netns     string `json:"netns,omitempty"`
	Mode      string `json:"mode"`
	// Engine is empty where the hook has no chain of Holdfast's.
	Engine  arbiter.Engine `json:"engine,omitempty"`
	Program xdp.Program    `json:"program"`
	// Counting tells that the chain counts, and Packets how many came to it since.
	Counting bool          `json:"counting"`
	Packets  uint64        `json:"packets,omitempty"`
	Members  []memberStats `json:"members,omitempty"`
}

type memberStats struct {
	Name string `json:"name"`
	ID   uint32 `json:"id"`
	stats.Counters
}

func (a *app) statsCommand() *cobra.Command {
	var namespace string
	var all bool
	c := &cobra.Command{
		Use:   "stats [IF...]",
		Short: "Show what each member of a chain has done to packets",
		Long: `Show how often each member of a chain has returned what, and how long it took,
since the member came, or since the chain counts. A chain counts once that was
asked for, with 'holdfast attach --stats' or 'holdfast set IF --stats on'.

One of 64 packets on a processor is timed, and NS is how long the member took of
these on average, one reading of the clock included.

'holdfast top' shows what happens now, of hooks that count nothing as well.`,
		Example: `  holdfast stats
  holdfast stats eth0 -o json`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return completeInterfaces(0)
		},
		RunE: func(c *cobra.Command, args []string) error {
			state, namespaces, err := a.lookInto(c.Context(), namespace, all, args)
			if err != nil {
				return err
			}
			defer state.Close()
			defer closeAll(namespaces)
			found, err := statusOf(state, namespaces, args)
			if err != nil {
				return err
			}
			return a.printStats(found, all, len(args) > 0)
		},
	}
	c.Flags().StringVar(&namespace, "netns", "", "network namespace to look into: a name, a path or a pid")
	c.Flags().BoolVar(&all, "all-netns", false, "look into all network namespaces that can be found")
	return c
}

func newHookStats(s arbiter.Status) hookStats {
	h := hookStats{Interface: s.Interface, Netns: s.Namespace, Mode: mode(s), Program: s.Program}
	if s.Chain == nil {
		return h
	}
	h.Engine, h.Counting, h.Packets = s.Chain.Engine, s.Chain.Stats, s.Chain.Packets
	for _, m := range s.Chain.Members {
		if m.Counters != nil {
			h.Members = append(h.Members, memberStats{m.Name, m.ID, *m.Counters})
		}
	}
	return h
}

// printStats prints what hooks have counted. Those that do not count are told only
// where they were named.
func (a *app) printStats(found []arbiter.Status, netns, named bool) error {
	var counting []hookStats
	for _, s := range found {
		h := newHookStats(s)
		switch {
		case h.Counting:
			counting = append(counting, h)
		case named && h.Engine != "":
			a.log.Info("nothing is counted there; `holdfast set "+s.Interface+" --stats on` changes that", "interface", s.Interface)
		case named:
			a.log.Info("nothing is counted there: only chains of owned hooks count", "interface", s.Interface)
		}
	}
	if a.json() {
		return a.printJSON("stats", append([]hookStats{}, counting...))
	}
	if len(counting) == 0 {
		if !named {
			a.log.Info("no chain counts; `holdfast set IF --stats on` has one count")
		}
		return nil
	}
	head := []string{"INTERFACE", "MEMBER", "PACKETS", "ABORTED", "DROP", "PASS", "TX", "REDIRECT", "OTHER", "NS"}
	if netns {
		head = append([]string{"NETNS"}, head...)
	}
	var rows [][]string
	add := func(h hookStats, row ...string) {
		if netns {
			row = append([]string{cmp.Or(h.Netns, "-")}, row...)
		}
		rows = append(rows, row)
	}
	n := func(n uint64) string { return strconv.FormatUint(n, 10) }
	for _, h := range counting {
		for _, m := range h.Members {
			v, ns := m.Verdicts, "-"
			if m.Timed > 0 {
				ns = strconv.FormatInt(m.PerRun().Nanoseconds(), 10)
			}
			add(h, h.Interface, m.Name, n(v.Sum()), n(v.Aborted), n(v.Drop), n(v.Pass), n(v.TX), n(v.Redirect), n(v.Other), ns)
		}
		if len(h.Members) == 0 {
			add(h, h.Interface, "-", n(h.Packets), "-", "-", "-", "-", "-", "-", "-")
		}
	}
	for _, line := range tableLines(head, rows, terminalWidth(a.env.Stdout)) {
		fmt.Fprintln(a.env.Stdout, line)
	}
	return nil
}
