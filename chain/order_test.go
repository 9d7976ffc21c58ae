package chain

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestTiesAreBrokenOneRuleAfterTheOther(t *testing.T) {
	loaded := func(tag byte, at uint64) Member {
		return Member{Name: "b", Priority: 5, Loaded: true, Tag: [8]byte{tag}, LoadTime: at}
	}
	// Each runs before the next.
	ordered := []Member{
		{Name: "z", Priority: 4},
		{Name: "a", Priority: 5, Instructions: 9},
		loaded(1, 7),
		loaded(1, 8),
		loaded(2, 1),
		{Name: "b", Priority: 5, Instructions: 1},
		{Name: "b", Priority: 5, Instructions: 2},
		{Name: "ba", Priority: 5, Loaded: true},
		{Name: "a", Priority: math.MaxUint32},
	}
	for i, a := range ordered {
		for j, b := range ordered {
			if got, want := sign(Compare(a, b)), sign(i-j); got != want {
				t.Errorf("comparing %+v with %+v gives %d, want %d", a, b, got, want)
			}
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestTheSizeOfALoadedProgramIsOfNoAccount(t *testing.T) {
	a, b := Member{Loaded: true, Instructions: 1}, Member{Loaded: true, Instructions: 2}
	if Compare(a, b) != 0 {
		t.Error("it decided")
	}
}

func TestAPlaceBesideAMemberIsAPriority(t *testing.T) {
	chain := []Member{{Name: "a", Priority: 10}, {Name: "b", Priority: 20}, {Name: "d", Priority: 20}, {Name: "e", Priority: 21}, {Name: "f", Priority: 50}}
	for name, c := range map[string]struct {
		members             []Member
		name, before, after string
		want                uint32
		err                 error
	}{
		"in the middle of a gap":             {chain, "x", "b", "", 15, nil},
		"the same gap from the other side":   {chain, "x", "", "a", 15, nil},
		"a gap given by both ends":           {chain, "x", "b", "a", 15, nil},
		"others may be between the ends":     {chain, "x", "f", "a", 30, nil},
		"before the first":                   {chain, "x", "a", "", 0, nil},
		"after the last":                     {chain, "x", "", "f", 60, nil},
		"between equals by its name":         {chain, "c", "d", "", 20, nil},
		"between equals the name does not":   {chain, "x", "d", "", 0, ErrNoRoom},
		"between neighbours below":           {chain, "x", "e", "", 20, nil},
		"between neighbours above":           {chain, "c", "e", "", 21, nil},
		"between neighbours neither":         {[]Member{{Name: "m", Priority: 1}, {Name: "b", Priority: 2}}, "c", "b", "", 0, ErrNoRoom},
		"before priority 0 by its name":      {[]Member{{Name: "b"}}, "a", "b", "", 0, nil},
		"before priority 0 by no name":       {[]Member{{Name: "b"}}, "c", "b", "", 0, ErrNoRoom},
		"of the same name before priority 0": {[]Member{{Name: "b"}}, "b", "b", "", 0, ErrNoRoom},
		"of the same name above":             {[]Member{{Name: "b"}}, "b", "", "b", 10, nil},
		"after the highest by its name":      {[]Member{{Name: "b", Priority: math.MaxUint32}}, "c", "", "b", math.MaxUint32, nil},
		"after the highest by no name":       {[]Member{{Name: "b", Priority: math.MaxUint32}}, "a", "", "b", 0, ErrNoRoom},
		"beside nobody":                      {chain, "x", "y", "", 0, ErrNoMember},
		"in an empty chain":                  {nil, "x", "", "a", 0, ErrNoMember},
		"beside one of two":                  {append(chain, Member{Name: "a", Priority: 90}), "x", "a", "", 0, ErrAmbiguous},
		"before one and after a later one":   {chain, "x", "a", "b", 0, ErrOrder},
		"before and after the same":          {chain, "x", "a", "a", 0, ErrOrder},
		"nowhere":                            {chain, "x", "", "", 0, ErrNoMember},
	} {
		got, err := Place(c.members, c.name, c.before, c.after)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: priority %d, %v; want %d, %v", name, got, err, c.want, c.err)
		}
		var place *PlaceError
		if err != nil && (!errors.As(err, &place) || place.Detail == "" || place.Hint == "") {
			t.Errorf("%s: %v does not say what to do", name, err)
		}
	}
}

func TestARefusedPlaceIsExplainedInOneSentence(t *testing.T) {
	_, err := Place([]Member{{Name: "a", Priority: 3}, {Name: "b", Priority: 3}}, "x", "b", "a")
	want := `place "x" after "a" and before "b": no priority fits: the neighbours leave no number and no name between them; change the priority of one of "a" at 3, "b" at 3`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// A member is what rapid makes of one: of few names and priorities, so that ties
// are frequent, and at the ends of the range.
var drawMember = rapid.Custom(func(t *rapid.T) Member {
	m := Member{
		Name:     rapid.StringMatching(`[abc]{1,2}`).Draw(t, "name"),
		Priority: rapid.OneOf(rapid.Uint32Range(0, 4), rapid.Uint32Range(math.MaxUint32-2, math.MaxUint32), rapid.Uint32()).Draw(t, "priority"),
		Loaded:   rapid.Bool().Draw(t, "loaded"),
	}
	if m.Loaded {
		m.Tag[7] = rapid.ByteRange(0, 2).Draw(t, "tag")
		m.LoadTime = rapid.Uint64Range(0, 2).Draw(t, "load time")
	} else {
		m.Instructions = rapid.IntRange(1, 3).Draw(t, "instructions")
	}
	return m
})

func TestCompareIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawMember.Draw(t, "a"), drawMember.Draw(t, "b"), drawMember.Draw(t, "c")
		if sign(Compare(a, b)) != -sign(Compare(b, a)) {
			t.Fatal("it depends on which comes first")
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatal("it is not transitive")
		}
		if Compare(a, a) != 0 {
			t.Fatal("a member differs from itself")
		}
	})
}

// Wherever a place is found, the member sorts there, before it is loaded and
// after; and where none is found there is none.
func TestAPlaceHoldsWhoeverSortsLater(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chain := rapid.SliceOfN(drawMember, 1, 6).Draw(t, "chain")
		Sort(chain)
		at := rapid.IntRange(0, len(chain)-1).Draw(t, "beside")
		m := drawMember.Draw(t, "member")
		before, after := chain[at].Name, ""
		if rapid.Bool().Draw(t, "after") {
			before, after = after, before
		}
		p, err := Place(chain, m.Name, before, after)
		if errors.Is(err, ErrAmbiguous) {
			return
		}
		lower := at - 1 // the neighbour that runs before it
		if after != "" {
			lower = at
		}
		if err != nil {
			for _, p := range candidates(chain) {
				if holds(chain, Member{Name: m.Name, Priority: p}, lower) {
					t.Fatalf("priority %d would have done: %v", p, err)
				}
			}
			return
		}
		m.Priority = p
		if !holds(chain, m, lower) {
			t.Fatalf("priority %d puts it elsewhere", p)
		}
	})
}

// holds tells whether m sorts right after the member at place lower whatever is
// known of m beside its name and priority.
func holds(chain []Member, m Member, lower int) bool {
	for _, loaded := range []bool{false, true} {
		for _, tag := range []byte{0, 255} {
			m := m
			m.ProceedOn = Set(AllActions()...) // by which it is told from its equals
			m.Loaded, m.Tag[0], m.Instructions = loaded, tag, int(tag)
			if !loaded {
				m.Tag[0] = 0
			}
			// Among equals the place that it is put at decides, so try both.
			for _, all := range [][]Member{append([]Member{m}, chain...), append(slices.Clone(chain), m)} {
				Sort(all)
				if all[lower+1] != m {
					return false
				}
			}
		}
	}
	return true
}

// candidates are all priorities that can make a difference.
func candidates(chain []Member) []uint32 {
	all := []uint32{0, math.MaxUint32}
	for _, m := range chain {
		all = append(all, m.Priority, m.Priority+1, m.Priority-1)
	}
	return all
}
