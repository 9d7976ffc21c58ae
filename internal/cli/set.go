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
	c := &cobra.Command{
		Use:   "set IF MEMBER",
		Short: "Change where in a chain a member runs, and what follows it",
		Long: `Change the priority of a member of a chain, its place beside another member, or
the results after which the chain goes on. All members go on running.

The only member of an owned hook can ask for the hook to itself with --exclusive,
and share it with --exclusive=false.

At a shared hook a member is named by its program's name or id, and may be
anybody's.`,
		Example: `  holdfast set eth0 sample --priority 10
  holdfast set eth0 sample --before filter
  holdfast set eth0 sample --exclusive=false
  holdfast set eth0 595 --proceed-on pass,tx`,
		Args: exactly("IF", "MEMBER"), ValidArgsFunction: a.completeMembers,
		RunE: func(c *cobra.Command, args []string) error {
			settings, err := mf.settings(c)
			if err != nil {
				return err
			}
			setsExclusive := c.Flags().Changed("exclusive")
			if settings == (libxdp.Settings{}) && !setsExclusive {
				return usagef("there is nothing to set: give --priority, --proceed-on, --before, --after or --exclusive")
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
			change := owned.Change{
				Op: owned.Set, Name: args[1],
				Priority: settings.Priority, Before: settings.Before, After: settings.After, ProceedOn: settings.ProceedOn,
			}
			if setsExclusive {
				change.Exclusive = &exclusive
			}
			switch {
			case s != nil && s.Chain == nil:
				return noChain("set", h, found)
			case s != nil:
				change.Name = memberName(s.Chain, args[1])
			}
			applied, err := a.apply(c.Context(), state, arbiter.Transaction{Hook: h, Changes: []arbiter.Change{{Change: change}}}, nil)
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
	return c
}
