package cli

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) detachCommand() *cobra.Command {
	var hf hookFlags
	var expect string
	var foreign, all bool
	c := &cobra.Command{
		Use:   "detach IF [MEMBER...]",
		Short: "Detach what Holdfast attached, or members of a chain",
		Long: `Detach what Holdfast attached to an interface: the members that are named, all at
once, and the others go on running. A chain of several members needs a name, or
--all.

What somebody else attached is detached only with --foreign and an expectation.
A foreign link is then detached by force: its holders are not told. A member that
a living process holds is taken from it with --foreign, too.

At a shared hook a member is named by its program's name or its id, and may be
anybody's.`,
		Example: `  holdfast detach eth0
  holdfast detach eth0 sample 595
  holdfast detach eth0 --all
  holdfast detach eth0 --foreign --expect 42`,
		Args: func(c *cobra.Command, args []string) error {
			return exactly("IF")(c, args[:min(len(args), 1)])
		},
		ValidArgsFunction: a.completeMembers,
		RunE: func(c *cobra.Command, args []string) error {
			e, err := parseExpect(expect)
			named := args[1:]
			switch {
			case err != nil:
				return err
			case expect == "empty":
				return usagef("--expect empty: there is nothing to detach then")
			case foreign && expect == "" && len(named) == 0:
				return usagef("--foreign needs --expect, or a member's name: say what you mean to detach")
			case len(named) > 0 && all:
				return usagef("--all detaches all members, and %q is one", named[0])
			case len(named) > 0 && expect != "":
				return usagef("--expect is for all that is there: name the member by its program's id instead")
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
				return a.detachMembers(c, chains, h, found, named, all, e)
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
			switch {
			case s != nil && s.Chain != nil && !e.IsZero() && !e.Holds(s.Program.ID):
				return unexpected(state, "detach", h, s, e)
			case s != nil && s.Chain != nil:
				names, err := leaving(h, s.Chain, named, all)
				if err != nil {
					return err
				}
				t := arbiter.Transaction{Hook: h, Changes: removals(names), Foreign: foreign}
				if all || !e.IsZero() {
					// Whoever joined since was not meant.
					t.Expect = &s.Chain.Generation
				}
				return a.detachOwned(c, state, t, s.Chain)
			case s == nil && len(named) > 0:
				return a.detachOwned(c, state, arbiter.Transaction{Hook: h, Changes: removals(named), Foreign: foreign}, nil)
			case len(named) > 0:
				return noChain("detach", h, found)
			}
			// What is at a shared hook is not the daemon's.
			own, err := arbiter.Open(a.stateOptions())
			if err != nil {
				return err
			}
			defer own.Close()
			ack, err := own.Detach(c.Context(), arbiter.DetachRequest{Hook: h, Expect: e, Foreign: foreign})
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
	c.Flags().BoolVar(&foreign, "foreign", false, "detach what somebody else attached, or a living process holds, too")
	c.Flags().BoolVar(&all, "all", false, "detach all members of a chain")
	return c
}

// leaving are the names of the members of an owned hook that are to be taken out.
func leaving(h *xdp.Hook, c *arbiter.ChainStatus, named []string, all bool) ([]string, error) {
	var names []string
	switch {
	case len(named) > 0:
		for _, n := range named {
			names = append(names, memberName(c, n))
		}
	case all && !c.Locked:
		for _, m := range c.Members {
			if !m.Ended {
				names = append(names, m.Name)
			}
		}
	default:
		m, err := onlyOwned(h, c, "name those that are meant, or give --all")
		if err != nil {
			return nil, err
		}
		names = []string{m.Name}
	}
	return names, nil
}

// detachOwned takes members out of the chain of an owned hook, which was before.
func (a *app) detachOwned(c *cobra.Command, state arbiter.Service, t arbiter.Transaction, before *arbiter.ChainStatus) error {
	applied, err := a.apply(c.Context(), state, t, nil)
	if err != nil {
		return err
	}
	var gone []ownedMember
	if before != nil {
		for _, c := range t.Changes {
			if m := findMember(before, c.Name); m != nil {
				gone = append(gone, newOwnedMember(*m))
			}
		}
	}
	var rest chainView
	s, err := state.At(t.Hook)
	if err != nil {
		return err
	}
	if s != nil && s.Chain != nil {
		rest = newOwnedChain(s.Chain)
	}
	if err := printWithout(a, t.Hook.Namespace().Spec(), t.Hook.Name(), t.Hook.Index(), gone, rest); err != nil {
		return err
	}
	a.acknowledged(applied)
	return nil
}

// detachMembers takes members out of the chain: those that are named, or with
// none all, if that is clearly meant.
func (a *app) detachMembers(c *cobra.Command, chains *libxdp.Chains, h *xdp.Hook, found *libxdp.Chain, named []string, all bool, e xdp.Expectation) error {
	if len(named) > 0 {
		var targets []libxdp.Target
		for _, s := range named {
			targets = append(targets, memberTarget(s))
		}
		left, err := chains.Remove(c.Context(), h, targets...)
		if err != nil {
			return a.withRecord(h, err)
		}
		return a.printDetachedMembers(h, fitting(found.Members, targets), left)
	}
	if !all {
		if _, err := onlyMember(h, found, "name those that are meant, or give --all"); err != nil {
			return err
		}
	}
	if e.IsZero() {
		// Whoever joined since was not meant.
		e = xdp.ExpectID(found.Dispatcher.ID)
	}
	if err := chains.RemoveAll(c.Context(), h, e); err != nil {
		return a.withRecord(h, err)
	}
	return a.printDetachedMembers(h, found.Members, nil)
}

// fitting are the members that the targets name.
func fitting(members []libxdp.Member, targets []libxdp.Target) []libxdp.Member {
	var fit []libxdp.Member
	for _, m := range members {
		if slices.Contains(targets, libxdp.Target{Name: m.Name}) || slices.Contains(targets, libxdp.Target{ID: m.Program.ID}) {
			fit = append(fit, m)
		}
	}
	return fit
}
