package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) replaceCommand() *cobra.Command {
	var hf hookFlags
	var of objectFlags
	var expect string
	c := &cobra.Command{
		Use:   "replace IF [MEMBER] OBJ",
		Short: "Replace what Holdfast attached, without a packet in between",
		Long: `Replace the program that Holdfast attached to an interface by another: every
packet meets the old one or the new one.

It is replaced only if the program that is attached when the command starts, or
the one that --expect names, is still attached when the new one is loaded.

At a shared hook the member of the chain that is named, by its program's name or
id, is replaced in its place: it keeps its priority and the results after which
the chain goes on.`,
		Example: `  holdfast replace eth0 filter-v2.o
  holdfast replace eth0 filter-v2.o --expect 42
  holdfast replace eth0 sample sample-v2.o`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 3 {
				return nil
			}
			return exactly("IF", "OBJ")(c, args)
		},
		ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			e, err := parseExpect(expect)
			named := len(args) == 3
			switch {
			case err != nil:
				return err
			case expect == "empty":
				return usagef("--expect empty: there is nothing to replace then; use attach")
			case named && expect != "":
				return usagef("--expect is for the only program of a hook: name the member by its program's id instead")
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			chains, found, err := a.readChain(h, named)
			if err != nil {
				return err
			}
			defer chains.Close()
			switch {
			case isChain(found) && expect != "":
				return usagef("%s has a chain, and --expect is for the only program of a hook: name the member by its program's id instead", h)
			case isChain(found) && named:
				return a.replaceMember(c, chains, h, memberTarget(args[1]), &of, args[2])
			case isChain(found):
				m, err := onlyMember(h, found, "name the one that is meant")
				if err != nil {
					return err
				}
				return a.replaceMember(c, chains, h, libxdp.Target{ID: m.Program.ID}, &of, args[1])
			case named:
				return noChain("replace", h, found)
			}
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

// replaceMember puts an object's program in a member's place.
func (a *app) replaceMember(c *cobra.Command, chains *libxdp.Chains, h *xdp.Hook, t libxdp.Target, f *objectFlags, path string) error {
	o, err := f.open(path)
	if err != nil {
		return err
	}
	a.raiseMemlock()
	replaced, err := chains.Replace(c.Context(), h, t, libxdp.Addition{Object: o, Load: f.options(h)})
	if f.verifierLog && err != nil {
		a.printVerifierLog(nil, err)
	}
	if err != nil {
		return a.withRecord(h, f.explain(h, err))
	}
	return a.printChain(h, replaced, "replaced")
}
