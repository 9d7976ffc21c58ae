package libxdp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// request is one change of the chain at a hook: one of the four kinds.
type request struct {
	op      string
	hook    *xdp.Hook
	add     []Addition
	remove  []Target
	replace *replacement
	set     *setting
}

type replacement struct {
	target Target
	by     Addition
}

type setting struct {
	target Target
	to     Settings
}

// additions are the programs that the request brings.
func (r request) additions() []Addition {
	if r.replace != nil {
		return []Addition{r.replace.by}
	}
	return r.add
}

// item is a member of a planned chain: one that is there already, or an
// addition.
type item struct {
	chain.Member
	frags, deviceBound bool
	id                 uint32 // the program's, 0 where it is not loaded
	// old is its slot in the chain that is there, and added its number among
	// the additions; the other is none.
	old, added int
}

// refusal is why a request can't be carried out on a chain: the sentinel, more
// words, and what to do.
type refusal struct {
	sentinel     error
	detail, hint string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s: %s; %s", r.sentinel, r.detail, r.hint)
}

func (r *refusal) Unwrap() error { return r.sentinel }

// plan says what the chain is to be, in order: the members that are there and
// the additions, as the request changes them.
func (r request) plan(there, added []item) ([]item, error) {
	planned := slices.Clone(there)
	var err error
	switch {
	case r.replace != nil:
		planned, err = planReplace(planned, r.replace.target, added[0], r.replace.by)
	case r.set != nil:
		planned, err = planSet(planned, r.set.target, r.set.to)
	case len(r.remove) > 0:
		planned, err = planRemove(planned, r.remove)
	case len(added) > 0:
		planned, err = planAdd(planned, added, r.add)
	default:
		err = &refusal{xdp.ErrInvalid, "nothing to add or remove was named", "name a program"}
	}
	if err != nil {
		return nil, err
	}
	return planned, checkPlan(planned)
}

func planAdd(planned, added []item, adds []Addition) ([]item, error) {
	for i, it := range added {
		if it.id != 0 && slices.ContainsFunc(planned, func(p item) bool { return p.id == it.id }) {
			return nil, &refusal{xdp.ErrExists, fmt.Sprintf("program %d %q is a member already", it.id, it.Name), "there is nothing to do"}
		}
		a := adds[i]
		if a.Before != "" || a.After != "" {
			if a.Priority != nil {
				return nil, errBothPlaces
			}
			p, err := chain.Place(members(planned), it.Name, a.Before, a.After)
			if err != nil {
				return nil, err
			}
			it.Priority = p
		}
		planned = sorted(append(planned, it))
	}
	return planned, nil
}

var errBothPlaces = &refusal{xdp.ErrInvalid, "a priority and a place beside another member were given", "give one of the two"}

func planRemove(planned []item, targets []Target) ([]item, error) {
	// All are found before the first goes: a name must not become unambiguous
	// by what is removed with it.
	gone := map[int]bool{}
	for _, t := range targets {
		i, err := find(planned, t)
		if err != nil {
			return nil, err
		}
		gone[i] = true
	}
	var rest []item
	for i, it := range planned {
		if !gone[i] {
			rest = append(rest, it)
		}
	}
	return rest, nil
}

func planReplace(planned []item, t Target, by item, a Addition) ([]item, error) {
	at, err := find(planned, t)
	if err != nil {
		return nil, err
	}
	old := planned[at]
	if a.ProceedOn == nil {
		by.ProceedOn = old.ProceedOn
	}
	rest := slices.Delete(planned, at, at+1)
	if by.id != 0 && slices.ContainsFunc(rest, func(p item) bool { return p.id == by.id }) {
		return nil, &refusal{xdp.ErrExists, fmt.Sprintf("program %d %q is another member", by.id, by.Name), "remove one of them"}
	}
	switch placed := a.Before != "" || a.After != ""; {
	case placed && a.Priority != nil:
		return nil, errBothPlaces
	case placed:
		if by.Priority, err = chain.Place(members(rest), by.Name, a.Before, a.After); err != nil {
			return nil, err
		}
	case a.Priority == nil:
		// The name is new, and among equal priorities it decides.
		by.Priority = old.Priority
		if next := sorted(append(slices.Clone(rest), by)); next[at].added == none {
			p, ok := chain.Between(members(rest), at-1, at, by.Name)
			if !ok {
				return nil, &refusal{
					chain.ErrNoRoom,
					fmt.Sprintf("with the name %q and priority %d it would not run where %q does, and its neighbours leave no other number between them", by.Name, old.Priority, old.Name),
					"give it a priority",
				}
			}
			by.Priority = p
		}
	}
	return sorted(append(rest, by)), nil
}

func planSet(planned []item, t Target, to Settings) ([]item, error) {
	at, err := find(planned, t)
	if err != nil {
		return nil, err
	}
	it := planned[at]
	rest := slices.Delete(planned, at, at+1)
	placed := to.Before != "" || to.After != ""
	switch {
	case placed && to.Priority != nil:
		return nil, errBothPlaces
	case placed:
		if it.Priority, err = chain.Place(members(rest), it.Name, to.Before, to.After); err != nil {
			return nil, err
		}
	case to.Priority != nil:
		it.Priority = *to.Priority
	case to.ProceedOn == nil:
		return nil, &refusal{xdp.ErrInvalid, "nothing to set was named", "name a priority, actions or a neighbour"}
	}
	if to.ProceedOn != nil {
		it.ProceedOn = *to.ProceedOn
	}
	return sorted(append(rest, it)), nil
}

// find is the place of the only member that the target fits.
func find(items []item, t Target) (int, error) {
	if t == (Target{}) {
		return 0, &refusal{xdp.ErrInvalid, "a member was named by nothing", "name it, or give its program's id"}
	}
	fits := func(it item) bool {
		return (t.Name == "" || it.Name == t.Name) && (t.ID == 0 || it.id == t.ID)
	}
	at := slices.IndexFunc(items, fits)
	if at < 0 {
		return 0, &refusal{ErrNoMember, fmt.Sprintf("the chain has no %s", t), "there are " + list(items)}
	}
	if slices.ContainsFunc(items[at+1:], fits) {
		return 0, &refusal{ErrNoMember, fmt.Sprintf("several are called %q", t.Name), "give the id of one, there are " + list(items)}
	}
	return at, nil
}

func list(items []item) string {
	if len(items) == 0 {
		return "none"
	}
	var s []string
	for _, it := range items {
		s = append(s, fmt.Sprintf("%q (program %d)", it.Name, it.id))
	}
	return strings.Join(s, ", ")
}

func members(items []item) []chain.Member {
	var m []chain.Member
	for _, it := range items {
		m = append(m, it.Member)
	}
	return m
}

// sorted brings items into the order that they run in.
func sorted(items []item) []item {
	slices.SortStableFunc(items, func(a, b item) int { return chain.Compare(a.Member, b.Member) })
	return items
}

// checkPlan refuses what the protocol can't do.
func checkPlan(planned []item) error {
	if len(planned) > MaxMembers {
		return &refusal{
			ErrFull,
			fmt.Sprintf("it would have %d members, and the protocol of libxdp has %d slots", len(planned), MaxMembers),
			"remove a member first; an owned hook's chain has no such limit",
		}
	}
	var bound, free []string
	for _, it := range planned {
		if it.deviceBound {
			bound = append(bound, it.Name)
		} else {
			free = append(free, it.Name)
		}
	}
	if len(bound) > 0 && len(free) > 0 {
		return &refusal{
			xdp.ErrDeviceBound,
			fmt.Sprintf("in one chain all programs are bound to the device or none: %s would be, %s would not", strings.Join(bound, ", "), strings.Join(free, ", ")),
			"load them all for this interface, or none",
		}
	}
	return nil
}

// planConf is the configuration of the dispatcher for a planned chain. found is
// the version that is there, 0 for none: what others made stays what they can
// read. A fresh chain has version 2, which libxdp reads since 1.3, unless it
// needs what only version 3 has.
func planConf(planned []item, found int) (conf, error) {
	c := conf{version: found, frags: len(planned) > 0}
	for _, it := range planned {
		c.slots = append(c.slots, slot{
			proceedOn: it.ProceedOn, priority: it.Priority, frags: it.frags, deviceBound: it.deviceBound,
		})
		c.frags = c.frags && it.frags
		c.deviceBound = it.deviceBound // of all or of none
	}
	switch {
	case found == 1:
		return conf{}, &refusal{
			xdp.ErrNotSupported,
			"the chain's dispatcher is of version 1, which only libxdp before 1.3 makes and can read",
			"change it with the tool that made it, or detach it as a whole and add its programs anew",
		}
	case found == 0 && c.deviceBound:
		c.version = 3
	case found == 0:
		c.version = 2
	case c.deviceBound && found < 3:
		return conf{}, &refusal{
			xdp.ErrDeviceBound,
			fmt.Sprintf("the chain's dispatcher is of version %d, and only version 3 can be bound to a device", found),
			"load the programs for no device, or remove all members and add them anew",
		}
	}
	return c, nil
}
