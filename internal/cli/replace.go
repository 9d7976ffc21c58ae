package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) replaceCommand() *cobra.Command {
	var hf hookFlags
	var of objectFlags
	var expect string
	var generation uint64
	c := &cobra.Command{
		Use:   "replace IF [MEMBER] OBJ",
		Short: "Replace what Holdfast attached, without a packet in between",
		Long: `Replace the program of a member that Holdfast attached to an interface by another:
every packet meets the old one or the new one. The member keeps its name, its
place and the results after which the chain goes on. It need not be named where
it is the only one.

It is replaced only if it is as it was when the command started, or as --expect
or --expect-generation say: by the id of its program or of the one that the hook
runs, or by the member's generation, which 'holdfast status -o json' shows.

At a shared hook the member of the chain that is named, by its program's name or
id, is replaced in the same way, whoever added it.`,
		Example: `  holdfast replace eth0 filter-v2.o
  holdfast replace eth0 filter-v2.o --expect 42
  holdfast replace eth0 sample sample-v2.o`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 3 {
				return nil
			}
			return exactly("IF", "OBJ")(c, args)
		},
		ValidArgsFunction: a.completeReplace,
		RunE: func(c *cobra.Command, args []string) error {
			e, err := parseExpect(expect)
			byGeneration := c.Flags().Changed("expect-generation")
			switch {
			case err != nil:
				return err
			case expect == "empty":
				return usagef("--expect empty: there is nothing to replace then; use attach")
			case byGeneration && expect != "":
				return usagef("--expect and --expect-generation exclude each other")
			case byGeneration && generation == 0:
				return usagef("--expect-generation 0: no member has that; `holdfast status -o json` shows which there are")
			}
			named, path := "", args[len(args)-1]
			if len(args) == 3 {
				named = args[1]
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
			switch {
			case isChain(found) && (expect != "" || byGeneration):
				return usagef("%s has a shared chain, and --expect is for what Holdfast attached: name the member by its program's id instead", h)
			case isChain(found) && named != "":
				return a.replaceMember(c, chains, h, memberTarget(named), &of, path)
			case isChain(found):
				m, err := onlyMember(h, found, "name the one that is meant")
				if err != nil {
					return err
				}
				return a.replaceMember(c, chains, h, libxdp.Target{ID: m.Program.ID}, &of, path)
			}
			o, err := of.open(path)
			if err != nil {
				return err
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
			change := arbiter.Change{
				Change: owned.Change{Op: owned.Replace, Name: named, Expect: generation}, Object: o, Load: of.options(h),
			}
			switch {
			case s != nil && s.Chain != nil:
				return a.replaceOwned(c, state, h, s, change, e, &of)
			case s == nil && named != "":
				return a.replaceOwned(c, state, h, nil, change, e, &of)
			case named != "":
				return noChain("replace", h, found)
			case byGeneration && s != nil:
				return usagef("--expect-generation is about a member of an owned hook, and %s is shared: use --expect", h)
			}
			if e.IsZero() {
				// Then there is nothing to replace, whoever attaches meanwhile.
				e = xdp.Empty
				if s != nil {
					e = xdp.ExpectID(s.Program.ID)
				}
			}
			return a.replaceSingle(c, h, o, e, &of)
		},
	}
	hf.add(c)
	of.add(c)
	c.Flags().StringVar(&expect, "expect", "", "what must be attached: a program's id, or any (default: what is attached when the command starts)")
	c.Flags().Uint64Var(&generation, "expect-generation", 0, "which generation the member must have")
	return c
}

// replaceOwned replaces a member of an owned hook, whose status is s; nil where
// nothing is attached any more.
func (a *app) replaceOwned(c *cobra.Command, state arbiter.Service, h *xdp.Hook, s *arbiter.Status, change arbiter.Change, e xdp.Expectation, of *objectFlags) error {
	if s != nil {
		if change.Name == "" {
			m, err := onlyOwned(h, s.Chain, "name the one that is meant")
			if err != nil {
				return err
			}
			change.Name = m.Name
		}
		change.Name = memberName(s.Chain, change.Name)
		m := findMember(s.Chain, change.Name)
		if m != nil && !e.IsZero() && !e.Holds(s.Program.ID) && (m.Program.ID == 0 || !e.Holds(m.Program.ID)) {
			return unexpected(state, "replace", h, s, e)
		}
		if m != nil && change.Expect == 0 && e != xdp.Any {
			change.Expect = m.Generation
		}
	}
	applied, err := a.apply(c.Context(), state, arbiter.Transaction{Hook: h, Changes: []arbiter.Change{change}}, of)
	if err != nil {
		return err
	}
	if err := a.printOwned(state, h, "replaced", false); err != nil {
		return err
	}
	a.acknowledged(applied)
	return nil
}

// replaceSingle replaces what Holdfast attached to a shared hook without a chain.
func (a *app) replaceSingle(c *cobra.Command, h *xdp.Hook, o *object.Object, e xdp.Expectation, of *objectFlags) error {
	loaded, err := of.loadObject(a, h, o, of.options(h))
	if err != nil {
		return err
	}
	defer loaded.Close()
	state, err := arbiter.Open(a.stateOptions()) // it is not the daemon's
	if err != nil {
		return err
	}
	defer state.Close()
	ack, err := state.Replace(c.Context(), arbiter.ReplaceRequest{Hook: h, Program: loaded, Expect: e})
	if err != nil {
		return err
	}
	if err := a.printAt(state, h, loaded, "replaced", false); err != nil {
		return err
	}
	a.acknowledge(ack)
	return nil
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
