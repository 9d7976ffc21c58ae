package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
)

func (a *app) detachCommand() *cobra.Command {
	var hf hookFlags
	var expect string
	var foreign bool
	c := &cobra.Command{
		Use:   "detach IF",
		Short: "Detach what Holdfast attached",
		Long: `Detach what Holdfast attached to an interface.

What somebody else attached is detached only with --foreign and an expectation.
A foreign link is then detached by force: its holders are not told.`,
		Example: `  holdfast detach eth0
  holdfast detach eth0 --foreign --expect 42`,
		Args: exactly("IF"), ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			e, err := parseExpect(expect)
			switch {
			case err != nil:
				return err
			case expect == "empty":
				return usagef("--expect empty: there is nothing to detach then")
			case foreign && expect == "":
				return usagef("--foreign needs --expect: say which program you mean to detach")
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			state, err := arbiter.Open(a.stateOptions())
			if err != nil {
				return err
			}
			defer state.Close()
			ack, err := state.Detach(c.Context(), arbiter.DetachRequest{Hook: h, Expect: e, Foreign: foreign})
			if err != nil {
				return err
			}
			if err := a.printDetached(h); err != nil {
				return err
			}
			a.acknowledge(ack)
			return nil
		},
	}
	hf.add(c)
	c.Flags().StringVar(&expect, "expect", "", "what must be attached: a program's id, or any (default: what Holdfast attached)")
	c.Flags().BoolVar(&foreign, "foreign", false, "detach what somebody else attached, too")
	return c
}
