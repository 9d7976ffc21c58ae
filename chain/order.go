package chain

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Member is what decides a program's place in a chain.
type Member struct {
	Name      string
	Priority  uint32
	ProceedOn Actions

	// What follows decides only between members of the same priority and name.

	// Loaded says that the program is in the kernel already, as those that
	// run in the chain are.
	Loaded bool
	// Instructions is the program's size in its object. It is of no account
	// once the program is loaded.
	Instructions int
	// Tag and LoadTime, in nanoseconds since boot, are the kernel's. They are
	// zero for a program that is not loaded.
	Tag      [8]byte
	LoadTime uint64
}

// Compare is negative if a runs before b, and positive if b runs before a. What
// decides is, in this order: the lower priority, the name (byte by byte), to be
// loaded already, for two that are not the smaller size, the smaller tag, and
// to be loaded earlier. These are libxdp's rules. Members that have all of it
// in common keep the order that they come in.
func Compare(a, b Member) int {
	if c := compareNamed(a, b); c != 0 {
		return c
	}
	switch {
	case a.Loaded && !b.Loaded:
		return -1
	case b.Loaded && !a.Loaded:
		return 1
	case !a.Loaded:
		if c := cmp.Compare(a.Instructions, b.Instructions); c != 0 {
			return c
		}
	}
	return cmp.Or(bytes.Compare(a.Tag[:], b.Tag[:]), cmp.Compare(a.LoadTime, b.LoadTime))
}

// compareNamed is the part of Compare that stays the same whoever sorts the
// chain later: what is not loaded now will be then.
func compareNamed(a, b Member) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Name, b.Name))
}

// Sort brings members into the order that they run in.
func Sort(members []Member) { slices.SortStableFunc(members, Compare) }

// What keeps a member from running before or after another, for errors.Is.
var (
	// ErrNoMember: no member has the name.
	ErrNoMember = errors.New("no such member")
	// ErrAmbiguous: several members have the name.
	ErrAmbiguous = errors.New("several members have that name")
	// ErrOrder: the member that is to come first comes last.
	ErrOrder = errors.New("the order contradicts itself")
	// ErrNoRoom: no priority lies between the neighbours.
	ErrNoRoom = errors.New("no priority fits")
)

// PlaceError says why a member can't run where it was asked to.
type PlaceError struct {
	// Member is the name of the one that was to be placed.
	Member string
	// Before and After are the names it was to be placed by.
	Before, After string
	// Err is one of the sentinels.
	Err error
	// Detail says more than the sentinel, and Hint what to do.
	Detail, Hint string
}

func (e *PlaceError) Error() string {
	where := ""
	if e.After != "" {
		where += fmt.Sprintf(" after %q", e.After)
	}
	if e.Before != "" {
		if where != "" {
			where += " and"
		}
		where += fmt.Sprintf(" before %q", e.Before)
	}
	return fmt.Sprintf("place %q%s: %s: %s; %s", e.Member, where, e.Err, e.Detail, e.Hint)
}

func (e *PlaceError) Unwrap() error { return e.Err }

// away is how far from the first or the last member a new first or last one is
// placed, where there is room: others are to find some as well.
const away = 10

// Place returns the priority with which a member of that name runs right before
// the member named before, right after the one named after, or, where both are
// given, somewhere between the two. members is the chain in its order, without
// the one to be placed. Whoever sorts the chain later by [Compare] comes to the
// same order.
//
// The error is a [*PlaceError] around ErrNoMember, ErrAmbiguous, ErrOrder or
// ErrNoRoom.
func Place(members []Member, name, before, after string) (uint32, error) {
	fail := func(sentinel error, detail, hint string) (uint32, error) {
		return 0, &PlaceError{Member: name, Before: before, After: after, Err: sentinel, Detail: detail, Hint: hint}
	}
	// lower and upper are the places of the neighbours.
	lower, upper := -1, len(members)
	for _, n := range []struct {
		name string
		at   *int
	}{{after, &lower}, {before, &upper}} {
		if n.name == "" {
			continue
		}
		switch places := find(members, n.name); len(places) {
		case 0:
			return fail(ErrNoMember, fmt.Sprintf("%q is not in the chain", n.name), "name one of "+names(members))
		case 1:
			*n.at = places[0]
		default:
			return fail(ErrAmbiguous, fmt.Sprintf("%q is there more than once", n.name), "give a priority instead: "+names(members))
		}
	}
	switch {
	case before == "" && after == "":
		return 0, &PlaceError{Member: name, Err: ErrNoMember, Detail: "no neighbour was named", Hint: "name one"}
	case before == "":
		upper = lower + 1
	case after == "":
		lower = upper - 1
	case lower >= upper:
		return fail(ErrOrder, fmt.Sprintf("%q does not run before %q", after, before), "the chain is "+names(members))
	}
	p, ok := Between(members, lower, upper, name)
	if !ok {
		return fail(ErrNoRoom, "the neighbours leave no number and no name between them", "change the priority of one of "+names(members))
	}
	return p, nil
}

// find returns the places of the members of that name.
func find(members []Member, name string) (places []int) {
	for i, m := range members {
		if m.Name == name {
			places = append(places, i)
		}
	}
	return places
}

// names lists a chain for a message.
func names(members []Member) string {
	if len(members) == 0 {
		return "an empty chain"
	}
	var s []byte
	for i, m := range members {
		if i > 0 {
			s = append(s, ", "...)
		}
		s = fmt.Appendf(s, "%q at %d", m.Name, m.Priority)
	}
	return string(s)
}

// Between returns the priority with which a member of that name runs after the
// one at place lower and before the one at place upper, of which -1 and
// len(members) stand for the ends. It is false if there is none that everybody
// who sorts by [Compare] would agree on.
func Between(members []Member, lower, upper int, name string) (uint32, bool) {
	first, last := lower < 0, upper >= len(members)
	var low, high uint32 = 0, math.MaxUint32
	if !first {
		low = members[lower].Priority
	}
	if !last {
		high = members[upper].Priority
	}
	var wanted uint32
	switch {
	case first && last:
		wanted = DefaultPriority
	case first:
		wanted = high - min(away, high)
	case last:
		wanted = low + min(away, math.MaxUint32-low)
	default:
		wanted = low + (high-low)/2
	}
	// Beside a neighbour of the same priority the names decide.
	fits := func(p uint32) bool {
		m := Member{Name: name, Priority: p}
		return (first || compareNamed(members[lower], m) < 0) && (last || compareNamed(m, members[upper]) < 0)
	}
	for _, p := range []uint32{wanted, low, high} {
		if p >= low && p <= high && fits(p) {
			return p, true
		}
	}
	return 0, false
}
