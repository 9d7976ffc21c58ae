package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
)

func (a *app) setCommand() *cobra.Command {
	var hf hookFlags
	var mf memberFlags
	c := &cobra.Command{
		Use:   "set IF MEMBER",
		Short: "Change where in a shared chain a member runs, and what follows it",
		Long: `Change the priority of a member of a shared hook's chain, its place beside another
member, or the results after which the chain goes on. The member is named by its
program's name or id, and may be anybody's. All members go on running.`,
		Example: `  holdfast set eth0 sample --priority 10
  holdfast set eth0 sample --before filter
  holdfast set eth0 595 --proceed-on pass,tx`,
		Args: exactly("IF", "MEMBER"), ValidArgsFunction: a.completeMembers,
		RunE: func(c *cobra.Command, args []string) error {
			settings, err := mf.settings(c)
			if err != nil {
				return err
			}
			if settings == (libxdp.Settings{}) {
				return usagef("there is nothing to set: give --priority, --proceed-on, --before or --after")
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			chains, found, err := a.readChain(h, true)
			if err != nil {
				return err
			}
			defer chains.Close()
			if !isChain(found) {
				return noChain("set", h, found)
			}
			changed, err := chains.Set(c.Context(), h, memberTarget(args[1]), settings)
			if err != nil {
				return a.withRecord(h, err)
			}
			return a.printChain(h, changed, "changed")
		},
	}
	hf.add(c)
	mf.add(c)
	return c
}
