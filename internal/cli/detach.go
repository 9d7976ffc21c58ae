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
		Short: "Detach what Holdfast attached, or members of a shared chain",
		Long: `Detach what Holdfast attached to an interface.

What somebody else attached is detached only with --foreign and an expectation.
A foreign link is then detached by force: its holders are not told.

At a shared hook the members that are named, by the program's name or its id, are
taken out of the chain, all at once, and the others go on running. They may be
anybody's. A chain of several members needs a name, or --all.`,
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
			case foreign && expect == "":
				return usagef("--foreign needs --expect: say which program you mean to detach")
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
			chains, found, err := a.readChain(h, len(named) > 0)
			if err != nil {
				return err
			}
			defer chains.Close()
			switch {
			case isChain(found):
				return a.detachMembers(c, chains, h, found, named, all, e)
			case len(named) > 0:
				return noChain("detach", h, found)
			}
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
	c.Flags().BoolVar(&all, "all", false, "detach all members of a shared chain")
	return c
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
