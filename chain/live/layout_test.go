package live

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSlotsComeInPairs(t *testing.T) {
	for s := range Slot(slotCount) {
		if s.Twin().Twin() != s || s.Twin() == s || s.Twin().Place() != s.Place() || s.Place() < 0 || s.Place() >= Places {
			t.Errorf("%s is in place %d, and its twin is %s", s, s.Place(), s.Twin())
		}
	}
}

func TestASetIsTheSlotsInIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfDistinct(rapid.Custom(drawSlot), func(s Slot) Slot { return s }).Draw(t, "slots")
		set := SetOf(list...)
		slices.Sort(list)
		if got := set.List(); !slices.Equal(got, list) {
			t.Fatalf("%v is read as %v", list, got)
		}
		var both []Slot
		for s := range Slot(slotCount) {
			if set.Has(s) != slices.Contains(list, s) {
				t.Fatalf("%s: %s is in it: %t", set, s, set.Has(s))
			}
			if s%2 == 0 && set.Has(s) && set.Has(s.Twin()) {
				both = append(both, s)
			}
		}
		if got := set.crowded().List(); !slices.Equal(got, both) {
			t.Fatalf("%s: the places with two slots start at %v, want %v", set, got, both)
		}
		if slotsOf(set.word()) != set {
			t.Fatalf("%s is read back as %s", set, slotsOf(set.word()))
		}
	})
	if set := SetOf(0, 63); set.Has(NoSlot) || set.Has(64) || set.Without(0) != SetOf(63) || set.String() != "{0 63}" {
		t.Errorf("%s", set)
	}
}

func drawSlot(t *rapid.T) Slot { return Slot(rapid.IntRange(0, slotCount-1).Draw(t, "slot")) }

func TestTheWordHasTheFirstSlotOfEachHalfInItsHighestBit(t *testing.T) {
	for slot, want := range map[Slot]uint64{0: 1 << 31, 1: 1 << 30, 31: 1, 32: 1 << 63, 63: 1 << 32} {
		if got := SetOf(slot).word(); got != want {
			t.Errorf("%s is %#x, want %#x", slot, got, want)
		}
	}
}

// lay lays out members that must fit into the dispatcher.
func lay(t testing.TB, members []Wanted, taken Slots) []Slot {
	t.Helper()
	a, err := Layout(members, taken)
	if err != nil || a.New {
		t.Fatalf("%v with %s taken: %+v, %v", members, taken, a, err)
	}
	return a.Slots
}

func at(slots ...Slot) []Wanted {
	var members []Wanted
	for _, s := range slots {
		members = append(members, Wanted{Slot: s})
	}
	return members
}

func TestMembersGetTheSlotsThatTheRulesSay(t *testing.T) {
	const none = NoSlot
	for name, c := range map[string]struct {
		members []Wanted
		taken   Slots
		want    []Slot
	}{
		"no members":                                   {nil, 0, []Slot{}},
		"the first members are side by side":           {at(none, none, none), 0, []Slot{0, 2, 4}},
		"a new one at the end comes next":              {at(0, 2, none), SetOf(0, 2), []Slot{0, 2, 4}},
		"also after a gap":                             {at(0, 20, none), SetOf(0, 20), []Slot{0, 20, 22}},
		"one in between takes the middle":              {at(2, none, 12), SetOf(2, 12), []Slot{2, 6, 12}},
		"two in between leave room on all sides":       {at(2, none, none, 12), SetOf(2, 12), []Slot{2, 4, 8, 12}},
		"one before all is in the middle of the room":  {at(none, 10), SetOf(10), []Slot{4, 10}},
		"the others stay where one leaves":             {at(0, 4), SetOf(0, 2, 4), []Slot{0, 4}},
		"a new one has the twin of one that leaves":    {at(0, none, 4), SetOf(0, 2, 4), []Slot{0, 3, 4}},
		"and what the twin was in use for, the slot":   {at(0, none, 4), SetOf(0, 3, 4), []Slot{0, 2, 4}},
		"one that is wanted anew gets its twin":        {[]Wanted{{0, false}, {2, true}, {5, true}}, SetOf(0, 2, 5), []Slot{0, 3, 4}},
		"or another place, if its twin has a link":     {[]Wanted{{0, false}, {2, true}, {6, false}}, SetOf(0, 2, 3, 6), []Slot{0, 4, 6}},
		"of two that change places one makes way":      {at(2, 0), SetOf(0, 2), []Slot{2, 6}},
		"who is to run earlier goes to the room there": {at(6, none, 4, 8), SetOf(4, 6, 8), []Slot{0, 2, 4, 8}},
		"without room the fewest make way":             {at(0, none, 2, 4, 10), SetOf(0, 2, 4, 10), []Slot{0, 3, 5, 6, 10}},
		"those that make way at the end get some room": {at(none, 0, 2, 4), SetOf(0, 2, 4), []Slot{3, 6, 10, 14}},
	} {
		if got := lay(t, c.members, c.taken); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestAChainThatGrowsAtItsEndNeverHasAMemberMakeWay(t *testing.T) {
	var slots []Slot
	for range Places {
		before := slots
		slots = lay(t, append(at(slots...), Wanted{Slot: NoSlot}), SetOf(slots...))
		if !slices.Equal(slots[:len(before)], before) {
			t.Fatalf("%v became %v", before, slots)
		}
	}
	_, err := Layout(append(at(slots...), Wanted{Slot: NoSlot}), SetOf(slots...))
	if !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
}

func TestMembersOfANewDispatcherLeaveNoPlaceFreeBetweenThem(t *testing.T) {
	for n := range Places + 1 {
		slots, err := Fresh(n)
		if err != nil || len(slots) != n {
			t.Fatalf("%d members: %v, %v", n, slots, err)
		}
		for i, s := range slots {
			if s != Slot(2*i) {
				t.Fatalf("%d members are at %v", n, slots)
			}
		}
	}
	if _, err := Fresh(Places + 1); !errors.Is(err, ErrFull) {
		t.Errorf("too many: %v", err)
	}
}

// Whoever had to make way once leaves room for the next.
func TestThoseThatMakeWayAreSpread(t *testing.T) {
	for n := 1; n < 15; n++ {
		slots, err := Fresh(n)
		if err != nil {
			t.Fatal(err)
		}
		slots = lay(t, append([]Wanted{{Slot: NoSlot}}, at(slots...)...), SetOf(slots...))
		for i := range n + 1 {
			next := lay(t, slices.Insert(at(slots...), i, Wanted{Slot: NoSlot}), SetOf(slots...))
			if kept := slices.Delete(slices.Clone(next), i, i+1); !slices.Equal(kept, slots) {
				t.Errorf("with one at %d, %v became %v", i, slots, next)
			}
		}
	}
}

func TestOnlyLinksThatAreLeftMakeANewDispatcherNecessary(t *testing.T) {
	a, err := Layout(at(0, NoSlot), ^Slots(0))
	if err != nil || !a.New || !slices.Equal(a.Slots, []Slot{0, 2}) {
		t.Errorf("%+v, %v", a, err)
	}
	// One of the pair is enough.
	if got := lay(t, at(0, NoSlot), ^SetOf(11)); !slices.Equal(got, []Slot{0, 11}) {
		t.Errorf("%v", got)
	}
}

// drawChain draws members in any order, some of them new, and what is taken:
// their slots and some more.
func drawChain(t *rapid.T, most int) (members []Wanted, taken Slots) {
	place := rapid.IntRange(0, Places-1)
	places := rapid.SliceOfNDistinct(place, 0, most, rapid.ID).Draw(t, "places")
	for _, p := range places {
		m := Wanted{Slot: NoSlot}
		if rapid.IntRange(0, 3).Draw(t, "old") > 0 {
			m = Wanted{Slot: Slot(2*p + rapid.IntRange(0, 1).Draw(t, "twin")), Anew: rapid.IntRange(0, 3).Draw(t, "anew") == 0}
			taken = taken.With(m.Slot)
		}
		members = append(members, m)
	}
	if rapid.Bool().Draw(t, "in order") {
		slices.SortFunc(members, func(a, b Wanted) int {
			if a.Slot == NoSlot || b.Slot == NoSlot {
				return 0
			}
			return int(a.Slot - b.Slot)
		})
	}
	for _, p := range rapid.SliceOf(place).Draw(t, "gone") {
		// Of a place that is free now, or of one whose twin is in use.
		taken = taken.With(Slot(2*p + rapid.IntRange(0, 1).Draw(t, "twin")))
	}
	return members, taken
}

func TestALayoutKeepsItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, taken := drawChain(t, Places)
		a, err := Layout(members, taken)
		if err != nil || len(a.Slots) != len(members) {
			t.Fatalf("%+v, %v", a, err)
		}
		last := -1
		for i, s := range a.Slots {
			if !s.valid() || s.Place() <= last {
				t.Fatalf("%v: not in order", a.Slots)
			}
			last = s.Place()
			keeps := s == members[i].Slot && !members[i].Anew
			if !a.New && !keeps && taken.Has(s) {
				t.Fatalf("%v: %s of member %d is taken: %s", a.Slots, s, i, taken)
			}
		}
	})
}

func TestAsFewAsPossibleMakeWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, taken := drawChain(t, 9)
		a, err := Layout(members, taken)
		if err != nil {
			t.Fatal(err)
		}
		kept, stayed := 0, 0
		for i, s := range a.Slots {
			if s == members[i].Slot {
				kept++
			}
			if members[i].Anew && s == members[i].Slot.Twin() {
				stayed++
			}
		}
		// Tries every choice of those that stay in their place.
		bestKept, bestStayed, possible := 0, 0, false
		for choice := range 1 << len(members) {
			if k, s, ok := tryStay(members, taken, choice); ok {
				possible = true
				if k > bestKept || k == bestKept && s > bestStayed {
					bestKept, bestStayed = k, s
				}
			}
		}
		if possible == a.New {
			t.Fatalf("%+v, and it is possible in this dispatcher: %t", a, possible)
		}
		if possible && (kept < bestKept || stayed < bestStayed) {
			t.Fatalf("%v: %d keep their slots and %d their places, and %d and %d could", a.Slots, kept, stayed, bestKept, bestStayed)
		}
	})
}

// tryStay has the members of the choice stay in their places, gives each other
// the first place that is left to it, and counts the slots and places that are
// kept.
func tryStay(members []Wanted, taken Slots, choice int) (kept, stayed int, ok bool) {
	next := 0
	for i, m := range members {
		if choice&(1<<i) != 0 {
			switch {
			case m.Slot == NoSlot, m.Slot.Place() < next:
				return 0, 0, false
			case !m.Anew:
				kept++
			case taken.Has(m.Slot.Twin()):
				return 0, 0, false
			default:
				stayed++
			}
			next = m.Slot.Place() + 1
			continue
		}
		for next < Places && taken.Has(Slot(2*next)) && taken.Has(Slot(2*next+1)) {
			next++
		}
		if next == Places {
			return 0, 0, false
		}
		next++
	}
	return kept, stayed, true
}
