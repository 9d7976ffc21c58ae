package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// ownedFlags say how a member has its owned hook.
type ownedFlags struct {
	name      string
	exclusive bool
	engine    string
	stats     bool
}

func (f *ownedFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.name, "name", "", "what to call the member (default: the program's name)")
	flags.BoolVar(&f.exclusive, "exclusive", false, "have the hook to itself: nobody can add a member")
	flags.StringVar(&f.engine, "engine", "auto", "how the chain runs: live, fused, or auto: as it does, and else live where the kernel can")
	flags.BoolVar(&f.stats, "stats", false, "have the chain count what its members return, for 'holdfast stats' and 'holdfast top'")
	completeFlag(c, "engine", "auto", "live", "fused")
}

// check reads --engine, and refuses names that would not be legible.
func (f *ownedFlags) check() (arbiter.Engine, error) {
	if err := checkName(f.name); err != nil {
		return "", err
	}
	switch f.engine {
	case "auto":
		return "", nil
	case string(arbiter.Live), string(arbiter.Fused):
		return arbiter.Engine(f.engine), nil
	}
	return "", usagef("--engine %q: it is live, fused or auto", f.engine)
}

// counting is what is to become of the chain's counters, nil where they stay as they
// are.
func (f *ownedFlags) counting() *bool {
	if !f.stats {
		return nil
	}
	return &f.stats
}

// addition is the change that adds the object's program as a member.
func (f *ownedFlags) addition(h *xdp.Hook, of *objectFlags, place libxdp.Settings, path string, lifetime owned.Lifetime) (arbiter.Change, error) {
	o, err := of.open(path)
	if err != nil {
		return arbiter.Change{}, err
	}
	c := arbiter.Change{
		Change: owned.Change{
			Op: owned.Add, Name: f.name, Lifetime: lifetime,
			Priority: place.Priority, Before: place.Before, After: place.After, ProceedOn: place.ProceedOn,
		},
		Object: o, Load: of.options(h),
	}
	if f.exclusive {
		c.Exclusive = &f.exclusive
	}
	return c, nil
}

// apply makes a transaction. Of an error with an object it says which flag helps.
func (a *app) apply(ctx context.Context, state arbiter.Service, t arbiter.Transaction, of *objectFlags) (*arbiter.Applied, error) {
	a.raiseMemlock()
	if of == nil {
		return state.Apply(ctx, t)
	}
	for i, c := range t.Changes {
		if err := of.tell(a, t.Hook, c.Object, c.Load); err != nil {
			return nil, err
		}
		t.Changes[i].Load.LogLevel = 0
	}
	applied, err := state.Apply(ctx, t)
	return applied, of.explain(t.Hook, err)
}

// tell prints what the verifier says of the program as it would run alone, if
// that was asked for.
func (f *objectFlags) tell(a *app, h *xdp.Hook, o *object.Object, options object.LoadOptions) error {
	if !f.verifierLog {
		return nil
	}
	loaded, err := f.loadObject(a, h, o, options)
	if err != nil {
		return err
	}
	return loaded.Close()
}

// acknowledged marks what was printed as done; there may be nothing to mark.
func (a *app) acknowledged(applied *arbiter.Applied) {
	if applied.Acknowledge != nil {
		a.acknowledge(applied.Acknowledge)
	}
}

// printOwned says what was done at an owned hook, and what is there now. fresh
// tells that the hook was empty before.
func (a *app) printOwned(state arbiter.Service, h *xdp.Hook, done string, fresh bool) error {
	s, err := a.ownedAt(state, h, done)
	if err != nil {
		return err
	}
	if fresh {
		a.tellGeneric(h, s.Mode)
	}
	return a.printHook(newHook(*s), done)
}

// ownedAt reads what is at an owned hook that was just changed.
func (a *app) ownedAt(state arbiter.Service, h *xdp.Hook, done string) (*arbiter.Status, error) {
	s, err := state.At(h)
	if err == nil && (s == nil || s.Chain == nil) {
		err = &xdp.Error{
			Op: "look at", Hook: h.String(), Err: xdp.ErrConflict, Detail: "the member was " + done + ", and somebody has detached all since",
			Hint: "`holdfast status` shows what there is",
		}
	}
	return s, err
}

// memberName is the name of the member that the word means: a name, or the id of
// a member's own program. What means none is a name all the same, for an answer
// that tells which there are.
func memberName(c *arbiter.ChainStatus, word string) string {
	t := memberTarget(word)
	for _, m := range c.Members {
		if t.ID != 0 && m.Program.ID == t.ID && findMember(c, word) == nil {
			return m.Name
		}
	}
	return word
}

func findMember(c *arbiter.ChainStatus, name string) *arbiter.MemberStatus {
	for i := range c.Members {
		if c.Members[i].Name == name {
			return &c.Members[i]
		}
	}
	return nil
}

// onlyOwned is the member that is meant where none is named, or says that one
// must be.
func onlyOwned(h *xdp.Hook, c *arbiter.ChainStatus, otherwise string) (*arbiter.MemberStatus, error) {
	switch {
	case c.Locked:
		return nil, &owned.Error{Op: "change", Err: owned.ErrLocked, Detail: "nothing is attached to " + h.String(), Hint: "`holdfast unlock` unlocks it"}
	case len(c.Members) == 1:
		return &c.Members[0], nil
	}
	var names []string
	for _, m := range c.Members {
		names = append(names, m.Name)
	}
	return nil, usagef("%s has a chain of %d members: %s; %s", h, len(c.Members), strings.Join(names, ", "), otherwise)
}

// unexpected is the conflict with a program that is not the expected one.
func unexpected(state arbiter.Service, op string, h *xdp.Hook, s *arbiter.Status, e xdp.Expectation) error {
	xdp.FindHolders(&s.Attachment)
	return state.Explain(h, &xdp.Error{
		Op: op, Hook: h.String(), Err: xdp.ErrConflict, Rival: &s.Attachment, Detail: "expected " + e.String(),
		Hint: "look at what is attached now and decide again",
	})
}

// removals are the changes that take members out.
func removals(names []string) []arbiter.Change {
	var all []arbiter.Change
	for _, n := range names {
		all = append(all, arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: n}})
	}
	return all
}

// engineText is how a chain of that engine is called.
func engineText(e arbiter.Engine, members int) string {
	if members == 1 {
		return fmt.Sprintf("a %s chain of 1 member", e)
	}
	return fmt.Sprintf("a %s chain of %d members", e, members)
}
