package declared

import (
	"slices"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/lcs"
)

// Programs are digests of members' programs by the members' names, as
// [github.com/holdfast-bpf/holdfast/object.Loaded] has them. A program that is not
// among them differs from every other.
type Programs map[string]string

// Plan returns the transaction that makes of the chain what the hook declares:
// it adds the members that are missing, replaces those that have another program
// than is wanted, and sets what else is different. Members that are as they
// should be are not touched, and a chain that is gives a transaction without
// changes. It expects the chain's generation, and is to be made on that chain
// only.
//
// A member that is not declared stays, wherever its priority lets it run. With
// prune it goes, unless somebody holds it: it ends with its holder.
//
// Each add and replace is about the declared member of that name. The error is an
// [*owned.Error] for a declared name that belongs to a held member, which no file
// can take over. What else is in the way, such as a lock, [owned.Chain.Apply]
// tells.
func Plan(h Hook, now owned.Chain, running, wanted Programs, prune bool) (owned.Transaction, error) {
	p := planner{now: now}
	declared := map[string]bool{}
	for _, m := range h.Members {
		declared[m.Name] = true
		if is := p.find(m.Name); is != nil && is.Lifetime == owned.Held {
			return owned.Transaction{}, &owned.Error{
				Op: owned.Add, Member: m.Name, Err: owned.ErrExists, Rival: is,
				Hint: "choose another name, or wait until its holder ends",
			}
		}
	}
	for _, m := range now.Members {
		if prune && !declared[m.Name] && m.Lifetime != owned.Held {
			p.add(owned.Change{Op: owned.Remove, Name: m.Name})
		}
	}
	// Others can come only once the hook is given up, and all but one have to be
	// gone before it is asked for.
	if now.Exclusive && !h.Exclusive && declared[now.Members[0].Name] {
		p.add(owned.Change{Op: owned.Set, Name: now.Members[0].Name, Exclusive: &h.Exclusive})
	}
	in := p.inOrder(h.Members)
	for i, m := range h.Members {
		is := p.find(m.Name)
		switch {
		case is == nil:
			ch := owned.Change{Op: owned.Add, Name: m.Name, ProceedOn: &h.Members[i].ProceedOn}
			if h.Exclusive {
				ch.Exclusive = &h.Exclusive
			}
			place(&ch, h.Members, i, in)
			p.add(ch)
			continue
		case wanted[m.Name] == "" || running[m.Name] != wanted[m.Name]:
			p.add(owned.Change{Op: owned.Replace, Name: m.Name})
		}
		set := owned.Change{Op: owned.Set, Name: m.Name}
		if !in[m.Name] {
			place(&set, h.Members, i, in)
		}
		if is.ProceedOn != m.ProceedOn {
			set.ProceedOn = &h.Members[i].ProceedOn
		}
		if h.Exclusive && !now.Exclusive {
			set.Exclusive = &h.Exclusive
		}
		if set.Priority != nil || set.ProceedOn != nil || set.Exclusive != nil {
			p.add(set)
		}
	}
	t := owned.Transaction{Expect: &now.Generation, Changes: p.changes}
	if h.Stats != nil && *h.Stats != now.Stats {
		t.Stats = h.Stats
	}
	return t, nil
}

type planner struct {
	now     owned.Chain
	changes []owned.Change
}

func (p *planner) add(ch owned.Change) { p.changes = append(p.changes, ch) }

// find is the member as it is, nil where there is none.
func (p *planner) find(name string) *owned.Member {
	if at := p.now.Find(name); at >= 0 {
		return &p.now.Members[at]
	}
	return nil
}

// inOrder are the names of the members that have the right priority and can stay
// where they are: as many as there can be, so that few are moved.
func (p *planner) inOrder(wanted []Member) map[string]bool {
	var are, shall []string
	for _, m := range p.now.Members {
		if slices.ContainsFunc(wanted, func(w Member) bool { return w.Name == m.Name && w.Priority == m.Priority }) {
			are = append(are, m.Name)
		}
	}
	for _, m := range wanted {
		shall = append(shall, m.Name)
	}
	in := map[string]bool{}
	for _, name := range lcs.Common(are, shall) {
		in[name] = true
	}
	return in
}

// place lets the change put member i where it is declared. Those before it are in
// their places already, and of those after it the ones that are in order.
// Members of other priorities are no matter: the priority sees to them.
func place(ch *owned.Change, all []Member, i int, in map[string]bool) {
	priority := all[i].Priority
	ch.Priority = &priority
	if i > 0 && all[i-1].Priority == priority {
		ch.After = all[i-1].Name
		return
	}
	for _, m := range all[i+1:] {
		if m.Priority != priority {
			return
		}
		if in[m.Name] {
			ch.Before = m.Name
			return
		}
	}
}
