package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) replaceCommand() *cobra.Command {
	var hf hookFlags
	var of objectFlags
	var expect string
	c := &cobra.Command{
		Use:   "replace IF OBJ",
		Short: "Replace what Holdfast attached, without a packet in between",
		Long: `Replace the program that Holdfast attached to an interface by another: every
packet meets the old one or the new one.

It is replaced only if the program that is attached when the command starts, or
the one that --expect names, is still attached when the new one is loaded.`,
		Example: `  holdfast replace eth0 filter-v2.o
  holdfast replace eth0 filter-v2.o --expect 42`,
		Args: exactly("IF", "OBJ"), ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			e, err := parseExpect(expect)
			if err != nil {
				return err
			}
			if expect == "empty" {
				return usagef("--expect empty: there is nothing to replace then; use attach")
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			if e.IsZero() {
				s, err := h.Query()
				if err != nil {
					return err
				}
				// Then there is nothing to replace, whoever attaches meanwhile.
				e = xdp.Empty
				if at := s.At(h.Mode()); at != nil {
					e = xdp.ExpectID(at.Program.ID)
				}
			}
			loaded, err := of.load(a, args[1], h)
			if err != nil {
				return err
			}
			defer loaded.Close()
			state, err := arbiter.Open(a.stateOptions())
			if err != nil {
				return err
			}
			defer state.Close()
			r := arbiter.ReplaceRequest{Hook: h, Program: loaded, Expect: e}
			if of.deviceBound {
				r.BoundTo = h.Index()
			}
			ack, err := state.Replace(c.Context(), r)
			if err != nil {
				return err
			}
			if err := a.printAt(state, h, loaded, "replaced", false); err != nil {
				return err
			}
			a.acknowledge(ack)
			return nil
		},
	}
	hf.add(c)
	of.add(c)
	c.Flags().StringVar(&expect, "expect", "", "what must be attached: a program's id, or any (default: what is attached when the command starts)")
	return c
}
