package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/owned"
)

func (a *app) setCommand() *cobra.Command {
	var hf hookFlags
	var mf memberFlags
	var exclusive bool
	var counting string
	c := &cobra.Command{
		Use:   "set IF [MEMBER]",
		Short: "Change where in a chain a member runs, and what follows it",
		Long: `Change the priority of a member of a chain, its place beside another member, or
the results after which the chain goes on. All members go on running.

The only member of an owned hook can ask for the hook to itself with --exclusive,
and share it with --exclusive=false.

--stats has the chain of an owned hook count what its members return, or count no
more, from one packet to the next. It is about all members, and takes no MEMBER.

At a shared hook a member is named by its program's name or id, and may be
anybody's.`,
		Example: `  holdfast set eth0 sample --priority 10
  holdfast set eth0 sample --before filter
  holdfast set eth0 sample --exclusive=false
  holdfast set eth0 595 --proceed-on pass,tx
  holdfast set eth0 --stats on`,
		Args: func(c *cobra.Command, args []string) error {
			if counting != "" && len(args) == 1 {
				return nil
			}
			return exactly("IF", "MEMBER")(c, args)
		},
		ValidArgsFunction: a.completeMembers,
		RunE: func(c *cobra.Command, args []string) error {
			settings, err := mf.settings(c)
			if err != nil {
				return err
			}
			setsExclusive := c.Flags().Changed("exclusive")
			stats, err := parseStats(counting)
			setsMember := settings != (libxdp.Settings{}) || setsExclusive
			switch {
			case err != nil:
				return err
			case len(args) == 1 && setsMember:
				return usagef("MEMBER is missing, and --stats alone is about none")
			case len(args) == 2 && !setsMember && stats != nil:
				return usagef("--stats is about all members: leave out %s", args[1])
			case !setsMember && stats == nil:
				return usagef("there is nothing to set: give --priority, --proceed-on, --before, --after, --exclusive or --stats")
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			chains, found, err := a.readChain(h)
			if err != nil {
				return err
			}
			defer chains.Close()
			if isChain(found) {
				if stats != nil {
					return usagef("--stats is for owned hooks: the protocol of the shared chain at %s has no counters", h)
				}
				if setsExclusive {
					return usagef("--exclusive is for owned hooks, and %s has a shared chain", h)
				}
				changed, err := chains.Set(c.Context(), h, memberTarget(args[1]), settings)
				if err != nil {
					return a.withRecord(h, err)
				}
				return a.printChain(h, changed, "changed")
			}
			state, err := a.service(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			s, err := state.At(h)
			if err != nil {
				return err
			}
			if s != nil && s.Chain == nil {
				return noChain("set", h, found)
			}
			t := arbiter.Transaction{Hook: h, Stats: stats}
			if setsMember {
				change := owned.Change{
					Op: owned.Set, Name: args[1],
					Priority: settings.Priority, Before: settings.Before, After: settings.After, ProceedOn: settings.ProceedOn,
				}
				if s != nil {
					change.Name = memberName(s.Chain, args[1])
				}
				if setsExclusive {
					change.Exclusive = &exclusive
				}
				t.Changes = []arbiter.Change{{Change: change}}
			}
			applied, err := a.apply(c.Context(), state, t, nil)
			if err != nil {
				return err
			}
			if err := a.printOwned(state, h, "changed", false); err != nil {
				return err
			}
			a.acknowledged(applied)
			return nil
		},
	}
	hf.add(c)
	mf.add(c)
	c.Flags().BoolVar(&exclusive, "exclusive", false, "have an owned hook to itself, or with =false share it")
	c.Flags().StringVar(&counting, "stats", "", "on or off: whether the chain of an owned hook counts what its members return")
	completeFlag(c, "stats", "on", "off")
	return c
}

// parseStats reads --stats, nil where it was not given.
func parseStats(s string) (*bool, error) {
	switch s {
	case "":
		return nil, nil
	case "on", "off":
		on := s == "on"
		return &on, nil
	}
	return nil, usagef("--stats %q: it is on or off", s)
}
