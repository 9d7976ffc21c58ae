package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
)

func (a *app) adoptCommand() *cobra.Command {
	var hf hookFlags
	var of objectFlags
	var name string
	var allowGap bool
	c := &cobra.Command{
		Use:   "adopt IF OBJ",
		Short: "Own a hook to which somebody else attached a program by netlink",
		Long: `Take over a program that somebody else attached by netlink, so that the hook is
owned: the program of the object, which must have the name of the one that is
attached, is loaded anew and held by a bpf_link.

The kernel can't put a link in the place of what netlink attached. The program is
taken off first, and for the time of two calls, some microseconds to milliseconds
as the driver is quick, packets meet no program. --allow-gap says that this may
be; how long it was is told. If the link can't be had after all the program that
was there is attached again.

To take a program into the chain of a shared hook, without a gap, is
'holdfast attach --shared --adopt'.`,
		Example: "  holdfast adopt eth0 filter.o --allow-gap",
		Args:    exactly("IF", "OBJ"), ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkName(name); err != nil {
				return err
			}
			if !allowGap {
				return usagef("to adopt a program it is taken off and attached anew by a link, and packets in between meet none: give --allow-gap if that may be")
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			o, err := of.open(args[1])
			if err != nil {
				return err
			}
			state, err := a.service(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			options := of.options(h)
			if err := of.tell(a, h, o, options); err != nil {
				return err
			}
			options.LogLevel = 0
			a.raiseMemlock()
			adopted, err := state.Adopt(c.Context(), arbiter.AdoptRequest{Hook: h, Name: name, Object: o, Load: options})
			if err != nil {
				return of.explain(h, err)
			}
			s, err := a.ownedAt(state, h, "adopted")
			if err != nil {
				return err
			}
			if err := a.printAdopted(adoptedHook{newHook(*s), adopted.ProgramID, adopted.Gap}); err != nil {
				return err
			}
			a.acknowledged(adopted.Applied)
			return nil
		},
	}
	hf.add(c)
	of.add(c)
	c.Flags().StringVar(&name, "name", "", "what to call the member (default: the program's name)")
	c.Flags().BoolVar(&allowGap, "allow-gap", false, "let packets meet no program for as long as it takes")
	return c
}

// adoptedHook is a hook that was taken over, and from which program.
type adoptedHook struct {
	hookStatus
	From uint32        `json:"adopted_program"`
	Gap  time.Duration `json:"gap_ns"`
}

func (a *app) printAdopted(h adoptedHook) error {
	if a.json() {
		return a.printJSON("attachment", h)
	}
	if err := a.printHook(h.hookStatus, "adopted"); err != nil {
		return err
	}
	a.log.Info("packets met no program meanwhile", "for", h.Gap, "before", h.From)
	return nil
}
