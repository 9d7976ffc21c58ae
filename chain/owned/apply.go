package owned

import (
	"fmt"
	"slices"

	"github.com/holdfast-bpf/holdfast/chain"
)

// work is a transaction under way.
type work struct {
	before, after Chain
	// touched are the names of the members that changes were about and that
	// became different by them.
	touched map[string]bool
	ids     []uint32
}

// apply makes one change, and returns the version that it is about.
func (w *work) apply(ch Change) (uint32, error) {
	if err := ch.check(); err != nil {
		return 0, err
	}
	if ch.Op == Add {
		return w.add(ch)
	}
	at := w.after.Find(ch.Name)
	if at < 0 {
		return 0, ch.refuse(ErrNoMember, fmt.Sprintf("%q is not in the chain", ch.Name), "there are "+list(w.after.Members))
	}
	if err := w.expect(ch); err != nil {
		return 0, err
	}
	switch ch.Op {
	case Remove:
		return w.remove(at), nil
	case Replace:
		return w.replace(at, ch), nil
	default:
		return w.set(at, ch)
	}
}

// check refuses a change that makes no sense whatever the chain is.
func (ch Change) check() error {
	invalid := func(detail, hint string) error { return ch.refuse(ErrInvalid, detail, hint) }
	if err := CheckName(ch.Name); err != nil {
		return invalid(err.Error(), "choose another name")
	}
	placed := ch.Priority != nil || ch.Before != "" || ch.After != ""
	if ch.ProceedOn != nil && *ch.ProceedOn&^chain.Set(chain.AllActions()...) != 0 {
		return invalid(fmt.Sprintf("proceed-on has bits that are no action's (%#x)", uint32(*ch.ProceedOn)), "name actions")
	}
	switch ch.Op {
	case Add:
		if ch.Expect != 0 {
			return invalid("a generation is expected of a member that is yet to be made", "expect one of the chain")
		}
	case Remove:
		if placed || ch.ProceedOn != nil || ch.Exclusive != nil {
			return invalid("something is to be set of a member that goes", "remove it, or set it")
		}
	case Replace:
		if placed || ch.Exclusive != nil {
			return invalid("a member is to be replaced and moved in one change", "replace it and set it, in one transaction")
		}
	case Set:
		if !placed && ch.ProceedOn == nil && ch.Exclusive == nil {
			return invalid("nothing to set was named", "name a priority, actions or a neighbour")
		}
	default:
		return invalid(fmt.Sprintf("there is no change %q", ch.Op), "it is add, remove, replace or set")
	}
	switch ch.Lifetime {
	case "":
	case Held, Permanent:
		if ch.Op != Add {
			return invalid("a member keeps the lifetime that it was added with", "remove it and add it anew")
		}
	default:
		return invalid(fmt.Sprintf("there is no lifetime %q", ch.Lifetime), "it is held or permanent")
	}
	return nil
}

// expect refuses a change of a member that is not as it was expected to be.
// What counts is before the transaction, which is all that the caller can have
// seen.
func (w *work) expect(ch Change) error {
	if ch.Expect == 0 {
		return nil
	}
	at := w.before.Find(ch.Name)
	if at < 0 {
		return ch.refuse(ErrGeneration, fmt.Sprintf("expected generation %d of a member that is made only now", ch.Expect), "expect nothing of it")
	}
	if m := w.before.Members[at]; m.Generation != ch.Expect {
		e := ch.refuse(ErrGeneration, fmt.Sprintf("expected generation %d", ch.Expect), hintDecideAgain)
		e.Rival = &m
		return e
	}
	return nil
}

func (w *work) add(ch Change) (uint32, error) {
	c := &w.after
	if c.Locked {
		return 0, ch.refuse(ErrLocked, "nothing may be attached", "unlock it first")
	}
	if at := c.Find(ch.Name); at >= 0 {
		e := ch.refuse(ErrExists, "", "replace it, or choose another name")
		e.Rival = &c.Members[at]
		return 0, e
	}
	wanted := ch.Exclusive != nil && *ch.Exclusive
	if err := w.share(ch, wanted, c.Members); err != nil {
		return 0, err
	}
	m := Member{
		Name: ch.Name, Priority: chain.DefaultPriority, ProceedOn: chain.DefaultProceedOn,
		Lifetime: Permanent, ID: w.newID(),
	}
	if ch.ProceedOn != nil {
		m.ProceedOn = *ch.ProceedOn
	}
	if ch.Lifetime != "" {
		m.Lifetime = ch.Lifetime
	}
	at, p, err := place(c.Members, ch, m.Priority)
	if err != nil {
		return 0, err
	}
	m.Priority = p
	c.Members = slices.Insert(c.Members, at, m)
	c.Exclusive = wanted
	w.touched[m.Name] = true
	return m.ID, nil
}

// share refuses to share a hook that a member has to itself, and to give one to
// a member that has others beside it.
func (w *work) share(ch Change, wanted bool, others []Member) error {
	if len(others) == 0 || !w.after.Exclusive && !wanted {
		return nil
	}
	detail, hint := "a member has it to itself", "wait until it goes, or have it give that up"
	if !w.after.Exclusive {
		detail, hint = "it would be for this member alone, and there are others", "add it without exclusive, or remove "+list(others)
	}
	e := ch.refuse(ErrExclusive, detail, hint)
	e.Rival = &others[0]
	return e
}

// newID is the number of a new version: one that no member has, and not 0.
func (w *work) newID() uint32 {
	id := w.after.NextID
	for id == 0 || slices.ContainsFunc(w.after.Members, func(m Member) bool { return m.ID == id }) {
		id++
	}
	w.after.NextID = id + 1
	return id
}

func (w *work) remove(at int) uint32 {
	m := w.after.Members[at]
	w.after.Members = slices.Delete(w.after.Members, at, at+1)
	w.after.Exclusive = false // it was the only one that could have it
	return m.ID
}

func (w *work) replace(at int, ch Change) uint32 {
	id := w.newID()
	m := &w.after.Members[at]
	m.ID = id
	if ch.ProceedOn != nil {
		m.ProceedOn = *ch.ProceedOn
	}
	w.touched[m.Name] = true
	return id
}

func (w *work) set(at int, ch Change) (uint32, error) {
	c := &w.after
	m := c.Members[at]
	if ch.Exclusive != nil {
		others := slices.Delete(slices.Clone(c.Members), at, at+1)
		if err := w.share(ch, *ch.Exclusive, others); err != nil {
			return 0, err
		}
		if c.Exclusive != *ch.Exclusive {
			c.Exclusive = *ch.Exclusive
			w.touched[m.Name] = true
		}
	}
	to, p := at, m.Priority
	rest := slices.Delete(slices.Clone(c.Members), at, at+1)
	if ch.Before != "" || ch.After != "" || ch.Priority != nil && *ch.Priority != p {
		var err error
		if to, p, err = place(rest, ch, p); err != nil {
			return 0, err
		}
	}
	was := m
	m.Priority = p
	if ch.ProceedOn != nil {
		m.ProceedOn = *ch.ProceedOn
	}
	if m != was || to != at {
		w.touched[m.Name] = true
	}
	c.Members = slices.Insert(rest, to, m)
	return m.ID, nil
}

// place finds where among the members the change puts its own, which is none of
// them, and with which priority: unless it says otherwise with the neighbour's,
// or, without a neighbour, with the default.
func place(members []Member, ch Change, byDefault uint32) (at int, priority uint32, err error) {
	// The member comes after place lower and before place upper.
	lower, upper := -1, len(members)
	for _, n := range []struct {
		name string
		at   *int
	}{{ch.After, &lower}, {ch.Before, &upper}} {
		switch n.name {
		case "":
		case ch.Name:
			return 0, 0, ch.refuse(ErrOrder, "a member can't run beside itself", "name another one")
		default:
			*n.at = slices.IndexFunc(members, func(m Member) bool { return m.Name == n.name })
			if *n.at < 0 {
				return 0, 0, ch.refuse(ErrNoMember, fmt.Sprintf("%q is not in the chain", n.name), "there are "+list(members))
			}
		}
	}
	switch {
	case lower >= upper:
		return 0, 0, ch.refuse(ErrOrder, fmt.Sprintf("%q does not run before %q", ch.After, ch.Before), "there are "+list(members))
	case ch.Before == "" && ch.After == "":
		if ch.Priority != nil {
			byDefault = *ch.Priority
		}
		return behind(members, byDefault), byDefault, nil
	case ch.Before == "":
		upper = lower + 1
		priority = members[lower].Priority
	case ch.After == "":
		lower = upper - 1
		priority = members[upper].Priority
	default:
		priority = members[upper].Priority
	}
	if ch.Priority == nil {
		return upper, priority, nil
	}
	priority = *ch.Priority
	if lower >= 0 && priority < members[lower].Priority {
		return 0, 0, ch.refuse(ErrOrder,
			fmt.Sprintf("with priority %d it runs before %q, which has %d", priority, members[lower].Name, members[lower].Priority),
			"give no priority, or one that fits: "+list(members))
	}
	if upper < len(members) && priority > members[upper].Priority {
		return 0, 0, ch.refuse(ErrOrder,
			fmt.Sprintf("with priority %d it runs after %q, which has %d", priority, members[upper].Name, members[upper].Priority),
			"give no priority, or one that fits: "+list(members))
	}
	return min(upper, behind(members, priority)), priority, nil
}

// behind is the place behind the last member of that priority or a lower one.
func behind(members []Member, priority uint32) int {
	for i, m := range members {
		if m.Priority > priority {
			return i
		}
	}
	return len(members)
}

// refuse is the error for this change.
func (ch Change) refuse(sentinel error, detail, hint string) *Error {
	return &Error{Op: ch.Op, Member: ch.Name, Err: sentinel, Detail: detail, Hint: hint}
}

// count decides whether the chain counts.
func (w *work) count(wanted *bool) error {
	switch {
	case wanted != nil && *wanted && len(w.after.Members) == 0:
		return &Error{
			Op: opChange, Err: ErrInvalid, Detail: "there is no member whose results could be counted", Hint: "attach one first",
		}
	case wanted != nil:
		w.after.Stats = *wanted
	case len(w.after.Members) == 0:
		w.after.Stats = false
	}
	return nil
}

// result numbers what is different.
func (w *work) result() Result {
	if w.after.Exclusive == w.before.Exclusive && w.after.Stats == w.before.Stats && slices.Equal(w.after.Members, w.before.Members) {
		w.after = w.before
	} else {
		w.after.Generation++
		for i := range w.after.Members {
			if w.touched[w.after.Members[i].Name] {
				w.after.Members[i].Generation = w.after.Generation
			}
		}
	}
	return Result{After: w.after, IDs: w.ids, Diff: diff(w.before, w.after)}
}
