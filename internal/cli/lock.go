package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) lockCommand() *cobra.Command {
	var hf hookFlags
	c := &cobra.Command{
		Use:   "lock IF",
		Short: "Let nobody attach anything to an interface",
		Long: `Lock an interface that has no program: a bpf_link holds the hook, with a program
that passes every packet, and the kernel refuses everybody who wants to attach
another, Holdfast too, until 'holdfast unlock'.`,
		Example: "  holdfast lock eth0",
		Args:    exactly("IF"), ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			state, err := a.service(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			a.raiseMemlock()
			ack, err := state.Lock(c.Context(), h)
			if err != nil {
				return err
			}
			if err := a.printOwned(state, h, "locked", true); err != nil {
				return err
			}
			a.acknowledge(ack)
			return nil
		},
	}
	hf.add(c)
	return c
}

func (a *app) unlockCommand() *cobra.Command {
	var hf hookFlags
	c := &cobra.Command{
		Use:   "unlock IF",
		Short: "Undo what lock did",
		Long: `Unlock an interface that 'holdfast lock' locked. It is empty then, and whoever
comes first can attach.`,
		Example: "  holdfast unlock eth0",
		Args:    exactly("IF"), ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			state, err := a.service(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			ack, err := state.Unlock(c.Context(), h)
			if err != nil {
				return err
			}
			if err := a.printEmptied("unlocked", h.Namespace().Spec(), h.Name(), h.Index()); err != nil {
				return err
			}
			a.acknowledge(ack)
			return nil
		},
	}
	hf.add(c)
	return c
}
