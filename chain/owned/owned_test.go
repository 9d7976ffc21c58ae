package owned

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/chain"
)

// priority and the like make pointers of what a change says.
func priority(p uint32) *uint32 { return &p }

func actions(a ...chain.Action) *chain.Actions { s := chain.Set(a...); return &s }

var yes, no = ptr(true), ptr(false)

func ptr[T any](v T) *T { return &v }

// three is a chain whose members were added in one transaction each.
func three() Chain {
	return Chain{Generation: 3, NextID: 4, Members: []Member{
		{Name: "a", Priority: 10, ProceedOn: chain.DefaultProceedOn, Lifetime: Permanent, Generation: 1, ID: 1},
		{Name: "b", Priority: 50, ProceedOn: chain.DefaultProceedOn, Lifetime: Held, Generation: 2, ID: 2},
		{Name: "c", Priority: 50, ProceedOn: chain.DefaultProceedOn, Lifetime: Permanent, Generation: 3, ID: 3},
	}}
}

func alone() Chain {
	c := three()
	c.Members, c.Exclusive = c.Members[:1], true
	return c
}

// order is the chain in one line: name, priority, version and generation of each
// member.
func order(c Chain) string {
	var s []string
	for _, m := range c.Members {
		s = append(s, fmt.Sprintf("%s:%d v%d g%d", m.Name, m.Priority, m.ID, m.Generation))
	}
	return strings.Join(s, ", ")
}

func TestATransactionMakesTheNextGeneration(t *testing.T) {
	for name, c := range map[string]struct {
		changes []Change
		want    string
		ids     []uint32
	}{
		"an add without a place runs at 50, behind those that are there": {
			[]Change{{Op: Add, Name: "x"}},
			"a:10 v1 g1, b:50 v2 g2, c:50 v3 g3, x:50 v4 g4", []uint32{4},
		},
		"an add with a priority runs behind those of the same or a lower one": {
			[]Change{{Op: Add, Name: "x", Priority: priority(10)}},
			"a:10 v1 g1, x:10 v4 g4, b:50 v2 g2, c:50 v3 g3", []uint32{4},
		},
		"an add at priority 0 runs first": {
			[]Change{{Op: Add, Name: "x", Priority: priority(0)}},
			"x:0 v4 g4, a:10 v1 g1, b:50 v2 g2, c:50 v3 g3", []uint32{4},
		},
		"an add before another takes its priority": {
			[]Change{{Op: Add, Name: "x", Before: "b"}},
			"a:10 v1 g1, x:50 v4 g4, b:50 v2 g2, c:50 v3 g3", []uint32{4},
		},
		"an add after another takes its priority": {
			[]Change{{Op: Add, Name: "x", After: "a"}},
			"a:10 v1 g1, x:10 v4 g4, b:50 v2 g2, c:50 v3 g3", []uint32{4},
		},
		"an add between equals stays between them": {
			[]Change{{Op: Add, Name: "x", Before: "c"}},
			"a:10 v1 g1, b:50 v2 g2, x:50 v4 g4, c:50 v3 g3", []uint32{4},
		},
		"an add between two runs right before the second": {
			[]Change{{Op: Add, Name: "x", Before: "c", After: "a"}},
			"a:10 v1 g1, b:50 v2 g2, x:50 v4 g4, c:50 v3 g3", []uint32{4},
		},
		"an add between two with a priority runs where that belongs": {
			[]Change{{Op: Add, Name: "x", Before: "c", After: "a", Priority: priority(20)}},
			"a:10 v1 g1, x:20 v4 g4, b:50 v2 g2, c:50 v3 g3", []uint32{4},
		},
		"an add beside another with a priority that fits keeps it": {
			[]Change{{Op: Add, Name: "x", Before: "b", Priority: priority(49)}},
			"a:10 v1 g1, x:49 v4 g4, b:50 v2 g2, c:50 v3 g3", []uint32{4},
		},
		"an add beside one that the same transaction adds": {
			[]Change{{Op: Add, Name: "x", Priority: priority(20)}, {Op: Add, Name: "y", After: "x"}},
			"a:10 v1 g1, x:20 v4 g4, y:20 v5 g4, b:50 v2 g2, c:50 v3 g3", []uint32{4, 5},
		},
		"a remove leaves the others": {
			[]Change{{Op: Remove, Name: "b"}},
			"a:10 v1 g1, c:50 v3 g3", []uint32{2},
		},
		"a replace makes a version in the same place": {
			[]Change{{Op: Replace, Name: "b"}},
			"a:10 v1 g1, b:50 v4 g4, c:50 v3 g3", []uint32{4},
		},
		"a set of a priority moves behind those that have it": {
			[]Change{{Op: Set, Name: "a", Priority: priority(50)}},
			"b:50 v2 g2, c:50 v3 g3, a:50 v1 g4", []uint32{1},
		},
		"a set of a priority that changes no place is a change": {
			[]Change{{Op: Set, Name: "a", Priority: priority(11)}},
			"a:11 v1 g4, b:50 v2 g2, c:50 v3 g3", []uint32{1},
		},
		"a set of its own priority leaves it among its equals": {
			[]Change{{Op: Set, Name: "b", Priority: priority(50)}},
			"a:10 v1 g1, b:50 v2 g2, c:50 v3 g3", []uint32{2},
		},
		"a set moves before another": {
			[]Change{{Op: Set, Name: "c", Before: "b"}},
			"a:10 v1 g1, c:50 v3 g4, b:50 v2 g2", []uint32{3},
		},
		"a set moves after another": {
			[]Change{{Op: Set, Name: "b", After: "c"}},
			"a:10 v1 g1, c:50 v3 g3, b:50 v2 g4", []uint32{2},
		},
		"a set beside its neighbour takes the neighbour's priority": {
			[]Change{{Op: Set, Name: "b", After: "a"}},
			"a:10 v1 g1, b:10 v2 g4, c:50 v3 g3", []uint32{2},
		},
		"a set to where it is changes nothing": {
			[]Change{{Op: Set, Name: "b", Before: "c", Priority: priority(50), ProceedOn: actions(chain.Pass), Exclusive: no}},
			"a:10 v1 g1, b:50 v2 g2, c:50 v3 g3", []uint32{2},
		},
		"a set there and back changes nothing": {
			[]Change{{Op: Set, Name: "a", Priority: priority(90)}, {Op: Set, Name: "a", Priority: priority(10)}},
			"a:10 v1 g1, b:50 v2 g2, c:50 v3 g3", []uint32{1, 1},
		},
		"an add that is removed again changes nothing": {
			[]Change{{Op: Add, Name: "x"}, {Op: Remove, Name: "x"}},
			"a:10 v1 g1, b:50 v2 g2, c:50 v3 g3", []uint32{4, 4},
		},
		"a remove and an add of the same name make a new member": {
			[]Change{{Op: Remove, Name: "a", Expect: 1}, {Op: Add, Name: "a"}},
			"b:50 v2 g2, c:50 v3 g3, a:50 v4 g4", []uint32{1, 4},
		},
		"an expectation is about the member before the transaction": {
			[]Change{{Op: Set, Name: "b", Expect: 2, ProceedOn: actions()}, {Op: Replace, Name: "b", Expect: 2}},
			"a:10 v1 g1, b:50 v4 g4, c:50 v3 g3", []uint32{2, 4},
		},
		"nothing is nothing": {nil, "a:10 v1 g1, b:50 v2 g2, c:50 v3 g3", nil},
	} {
		before := three()
		r, err := before.Apply(Transaction{Expect: ptr(uint64(3)), Changes: c.changes, MaxMembers: 5})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := order(r.After); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, c.want)
		}
		if !slices.Equal(r.IDs, c.ids) {
			t.Errorf("%s: versions %d, want %d", name, r.IDs, c.ids)
		}
		changed := c.want != order(three())
		if (r.After.Generation == 4) != changed || r.Diff.Empty() == changed {
			t.Errorf("%s: generation %d, diff %s", name, r.After.Generation, r.Diff)
		}
		if !cmp.Equal(before, three()) {
			t.Errorf("%s: the chain itself was changed", name)
		}
	}
}

func TestWhatAMemberIsGivenItKeeps(t *testing.T) {
	r, err := Chain{}.Apply(Transaction{Changes: []Change{
		{Op: Add, Name: "a", Priority: priority(7), ProceedOn: actions(chain.Drop), Lifetime: Held},
		{Op: Add, Name: "b"},
		{Op: Replace, Name: "a"},
		{Op: Replace, Name: "b", ProceedOn: actions()},
	}})
	want := []Member{
		{Name: "a", Priority: 7, ProceedOn: chain.Set(chain.Drop), Lifetime: Held, Generation: 1, ID: 3},
		{Name: "b", Priority: 50, Lifetime: Permanent, Generation: 1, ID: 4},
	}
	if err != nil || !cmp.Equal(r.After.Members, want) {
		t.Errorf("%v, %s", err, cmp.Diff(want, r.After.Members))
	}
}

func TestAChainCountsWhileItHasMembers(t *testing.T) {
	counting := three()
	counting.Stats = true
	gone := []Change{{Op: Remove, Name: "a"}, {Op: Remove, Name: "b"}, {Op: Remove, Name: "c"}}
	for name, c := range map[string]struct {
		before  Chain
		changes []Change
		stats   *bool
		want    bool
		differs bool
		err     error
	}{
		"where it is asked to":          {three(), nil, yes, true, true, nil},
		"and goes on":                   {counting, gone[:2], nil, true, true, nil},
		"until it is asked not to":      {counting, nil, no, false, true, nil},
		"asked again nothing differs":   {counting, nil, yes, true, false, nil},
		"nor where it never did":        {three(), nil, no, false, false, nil},
		"or until the last member goes": {counting, gone, nil, false, true, nil},
		"with the first member":         {Chain{}, []Change{{Op: Add, Name: "x"}}, yes, true, true, nil},
		"and not without":               {Chain{}, nil, yes, false, false, ErrInvalid},
		"nor when all go":               {three(), gone, yes, false, false, ErrInvalid},
		"all may go without counting":   {counting, gone, no, false, true, nil},
	} {
		r, err := c.before.Apply(Transaction{Changes: c.changes, Stats: c.stats})
		if !errors.Is(err, c.err) || err == nil && (r.After.Stats != c.want || r.Diff.Empty() == c.differs) {
			t.Errorf("%s: counts %t, %v, %v; want %t, %v", name, r.After.Stats, r.Diff, err, c.want, c.err)
		}
	}
	// Nobody's generation changes but the chain's: the members are the same.
	r, err := three().Apply(Transaction{Stats: yes})
	if err != nil || !slices.Equal(r.After.Members, three().Members) || r.Diff.String() == "" {
		t.Errorf("%+v: %v", r, err)
	}
	if locked, err := (Chain{Stats: true}).Lock(); err != nil || locked.Stats {
		t.Errorf("locked, it counts nothing: %+v, %v", locked, err)
	}
}

func TestAnExclusiveMemberHasTheHookToItself(t *testing.T) {
	for name, c := range map[string]struct {
		before    Chain
		changes   []Change
		exclusive bool
		err       error
	}{
		"on an empty hook":                      {Chain{}, []Change{{Op: Add, Name: "x", Exclusive: yes}}, true, nil},
		"not beside others":                     {three(), []Change{{Op: Add, Name: "x", Exclusive: yes}}, false, ErrExclusive},
		"and nothing beside it":                 {alone(), []Change{{Op: Add, Name: "x"}}, true, ErrExclusive},
		"nor another that wants the same":       {alone(), []Change{{Op: Add, Name: "x", Exclusive: yes}}, true, ErrExclusive},
		"until it gives that up":                {alone(), []Change{{Op: Set, Name: "a", Exclusive: no}, {Op: Add, Name: "x"}}, false, nil},
		"or another takes its place":            {alone(), []Change{{Op: Remove, Name: "a"}, {Op: Add, Name: "x"}}, false, nil},
		"in a transaction in this order only":   {alone(), []Change{{Op: Add, Name: "x"}, {Op: Remove, Name: "a"}}, true, ErrExclusive},
		"it can ask for it later":               {Chain{Members: three().Members[:1]}, []Change{{Op: Set, Name: "a", Exclusive: yes}}, true, nil},
		"but not while there are others":        {three(), []Change{{Op: Set, Name: "a", Exclusive: yes}}, false, ErrExclusive},
		"it can be replaced":                    {alone(), []Change{{Op: Replace, Name: "a"}}, true, nil},
		"it goes, and so does its exclusivity":  {alone(), []Change{{Op: Remove, Name: "a"}}, false, nil},
		"it is set and stays what it is":        {alone(), []Change{{Op: Set, Name: "a", Priority: priority(1)}}, true, nil},
		"to give up what one has not is no sin": {three(), []Change{{Op: Set, Name: "a", Exclusive: no}}, false, nil},
	} {
		r, err := c.before.Apply(Transaction{Changes: c.changes})
		if !errors.Is(err, c.err) || err == nil && r.After.Exclusive != c.exclusive {
			t.Errorf("%s: exclusive %t, %v; want %t, %v", name, r.After.Exclusive, err, c.exclusive, c.err)
		}
	}
	r, err := alone().Apply(Transaction{Changes: []Change{{Op: Set, Name: "a", Exclusive: no}}})
	if err != nil || order(r.After) != "a:10 v1 g4" || r.Diff.String() == "" {
		t.Errorf("giving up exclusivity is a change: %v, %s, %s", err, order(r.After), r.Diff)
	}
}

func TestARefusedTransactionSaysWhyAndWhatToDo(t *testing.T) {
	locked, err := Chain{}.Lock()
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]struct {
		before Chain
		t      Transaction
		err    error
	}{
		`change the chain: conflict: expected the chain's generation 2, and it is 3; look at the chain as it is now and decide again`: {
			three(), Transaction{Expect: ptr(uint64(2))}, ErrGeneration,
		},
		`remove "b": conflict: expected generation 1: "b" is a held member at priority 50, last changed in generation 2; look at the chain as it is now and decide again`: {
			three(), Transaction{Changes: []Change{{Op: Remove, Name: "b", Expect: 1}}}, ErrGeneration,
		},
		`set "x": conflict: expected generation 3 of a member that is made only now; expect nothing of it`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "x"}, {Op: Set, Name: "x", Expect: 3, Before: "a"}}}, ErrGeneration,
		},
		`add "a": the name is taken: "a" is a permanent member at priority 10, last changed in generation 1; replace it, or choose another name`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "a"}}}, ErrExists,
		},
		`replace "x": no such member: "x" is not in the chain; there are "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Replace, Name: "x"}}}, ErrNoMember,
		},
		`remove "x": no such member: "x" is not in the chain; there are no members`: {
			Chain{}, Transaction{Changes: []Change{{Op: Remove, Name: "x"}}}, ErrNoMember,
		},
		`add "x": no such member: "y" is not in the chain; there are "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "x", After: "y"}}}, ErrNoMember,
		},
		`set "a": the order contradicts itself: a member can't run beside itself; name another one`: {
			three(), Transaction{Changes: []Change{{Op: Set, Name: "a", After: "a"}}}, ErrOrder,
		},
		`add "x": the order contradicts itself: "b" does not run before "a"; there are "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "x", After: "b", Before: "a"}}}, ErrOrder,
		},
		`add "x": the order contradicts itself: "a" does not run before "a"; there are "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "x", After: "a", Before: "a"}}}, ErrOrder,
		},
		`add "x": the order contradicts itself: with priority 20 it runs before "b", which has 50; give no priority, or one that fits: "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "x", Before: "c", Priority: priority(20)}}}, ErrOrder,
		},
		`set "b": the order contradicts itself: with priority 60 it runs after "c", which has 50; give no priority, or one that fits: "a" at 10, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Set, Name: "b", After: "a", Priority: priority(60)}}}, ErrOrder,
		},
		`add "x": the hook can't be shared: a member has it to itself: "a" is a permanent member at priority 10, last changed in generation 1; wait until it goes, or have it give that up`: {
			alone(), Transaction{Changes: []Change{{Op: Add, Name: "x"}}}, ErrExclusive,
		},
		`add "x": the hook can't be shared: it would be for this member alone, and there are others: "a" is a permanent member at priority 10, last changed in generation 1; add it without exclusive, or remove "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "x", Exclusive: yes}}}, ErrExclusive,
		},
		`add "x": the hook is locked: nothing may be attached; unlock it first`: {
			locked, Transaction{Changes: []Change{{Op: Add, Name: "x"}}}, ErrLocked,
		},
		`add "y": the chain is full: the chain would have 5 members, and there is room for 4; remove a member first; there are "a" at 10, "b" at 50, "c" at 50`: {
			three(), Transaction{MaxMembers: 4, Changes: []Change{{Op: Add, Name: "x"}, {Op: Add, Name: "y"}, {Op: Set, Name: "x", Before: "a"}}}, ErrFull,
		},
		`set "a": invalid: nothing to set was named; name a priority, actions or a neighbour`: {
			three(), Transaction{Changes: []Change{{Op: Set, Name: "a"}}}, ErrInvalid,
		},
		`add "a/b": invalid: "a/b" can't be a member's name: it contains '/'; choose another name`: {
			three(), Transaction{Changes: []Change{{Op: Add, Name: "a/b"}}}, ErrInvalid,
		},
	} {
		_, err := c.before.Apply(c.t)
		var refused *Error
		if !errors.As(err, &refused) || !errors.Is(err, c.err) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
			continue
		}
		if conflict := !slices.Contains([]error{ErrNoMember, ErrOrder, ErrFull, ErrInvalid}, c.err); IsConflict(err) != conflict {
			t.Errorf("%v: a conflict: %t, want %t", err, IsConflict(err), conflict)
		}
	}
}

func TestAChangeThatContradictsItselfIsInvalidWhateverTheChainIs(t *testing.T) {
	for name, ch := range map[string]Change{
		"an expectation of an add":         {Op: Add, Name: "x", Expect: 1},
		"a remove with a priority":         {Op: Remove, Name: "a", Priority: priority(1)},
		"a remove with actions":            {Op: Remove, Name: "a", ProceedOn: actions()},
		"a remove with a lifetime":         {Op: Remove, Name: "a", Lifetime: Held},
		"a replace with a place":           {Op: Replace, Name: "a", Before: "b"},
		"a replace with exclusive":         {Op: Replace, Name: "a", Exclusive: yes},
		"a set of the lifetime":            {Op: Set, Name: "a", Priority: priority(1), Lifetime: Held},
		"a lifetime that is none":          {Op: Add, Name: "x", Lifetime: "forever"},
		"an op that is none":               {Op: "move", Name: "a"},
		"no op":                            {Name: "a"},
		"no name":                          {Op: Add},
		"bits that are no action's":        {Op: Add, Name: "x", ProceedOn: ptr(chain.Actions(1 << 5))},
		"all bits":                         {Op: Set, Name: "a", ProceedOn: ptr(^chain.Actions(0))},
		"a name that is too long":          {Op: Add, Name: strings.Repeat("x", MaxName+1)},
		"a name that can't be seen":        {Op: Add, Name: "x\u200b"},
		"a name that is no text":           {Op: Add, Name: "\xff"},
		"a name of two lines":              {Op: Add, Name: "a\nb"},
		"a name like a flag":               {Op: Add, Name: "-x"},
		"a name that ends with a blank":    {Op: Add, Name: "x "},
		"a name that is looked for, empty": {Op: Remove, Name: ""},
	} {
		for _, before := range []Chain{{}, three(), {Locked: true}} {
			if _, err := before.Apply(Transaction{Changes: []Change{ch}}); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, name := range []string{"a", "ddos-filter", "a b", "Größe", "7", strings.Repeat("x", MaxName), "eth0.5", "a,b"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAFullChainCanBeChangedAndShrunk(t *testing.T) {
	for name, changes := range map[string][]Change{
		"one for another":          {{Op: Add, Name: "x"}, {Op: Remove, Name: "a"}},
		"a replace":                {{Op: Replace, Name: "a"}},
		"a remove":                 {{Op: Remove, Name: "a"}},
		"a remove of one too many": {{Op: Remove, Name: "a"}, {Op: Set, Name: "b", ProceedOn: actions()}},
	} {
		for _, room := range []int{2, 3} {
			if _, err := three().Apply(Transaction{Changes: changes, MaxMembers: room}); err != nil {
				t.Errorf("%s with room for %d: %v", name, room, err)
			}
		}
	}
}

func TestOnlyAnEmptyHookIsLocked(t *testing.T) {
	_, err := three().Lock()
	want := `lock: the hook has members: there are "a" at 10, "b" at 50, "c" at 50: "a" is a permanent member at priority 10, last changed in generation 1; remove them first`
	if !errors.Is(err, ErrNotEmpty) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	c := Chain{Generation: 7, NextID: 3}
	locked, err := c.Lock()
	if err != nil || !locked.Locked || locked.Generation != 8 {
		t.Fatalf("%+v, %v", locked, err)
	}
	if again, err := locked.Lock(); err != nil || !cmp.Equal(again, locked) {
		t.Errorf("locked twice: %+v, %v", again, err)
	}
	free := locked.Unlock()
	if free.Locked || free.Generation != 9 || !cmp.Equal(free.Unlock(), free) {
		t.Errorf("unlocked: %+v, and twice: %+v", free, free.Unlock())
	}
	if _, err := free.Apply(Transaction{Changes: []Change{{Op: Add, Name: "x"}}}); err != nil {
		t.Error(err)
	}
}

func TestVersionsAreNumberedAroundTheEnd(t *testing.T) {
	c := three()
	c.NextID = ^uint32(0)
	r, err := c.Apply(Transaction{Changes: []Change{{Op: Add, Name: "x"}, {Op: Add, Name: "y"}}})
	if err != nil || !slices.Equal(r.IDs, []uint32{^uint32(0), 4}) {
		t.Errorf("%d, %v; want the last number, and then the first that is free", r.IDs, err)
	}
}

func TestADamagedChainIsFound(t *testing.T) {
	for name, damage := range map[string]func(*Chain){
		"a priority falls":         func(c *Chain) { c.Members[2].Priority = 49 },
		"a name is there twice":    func(c *Chain) { c.Members[2].Name = "a" },
		"a name can't be one":      func(c *Chain) { c.Members[0].Name = "" },
		"a version is missing":     func(c *Chain) { c.Members[0].ID = 0 },
		"a version is there twice": func(c *Chain) { c.Members[1].ID = 1 },
		"a lifetime is none":       func(c *Chain) { c.Members[0].Lifetime = "" },
		"a generation is to come":  func(c *Chain) { c.Members[0].Generation = 4 },
		"a locked hook has any":    func(c *Chain) { c.Locked = true },
		"an exclusive has others":  func(c *Chain) { c.Exclusive = true },
		"an exclusive has none":    func(c *Chain) { c.Exclusive, c.Members = true, nil },
		"nothing is counted":       func(c *Chain) { c.Stats, c.Members = true, nil },
	} {
		c := three()
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		damage(&c)
		if err := c.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
