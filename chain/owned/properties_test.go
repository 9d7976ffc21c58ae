package owned

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain"
)

// Names and priorities are few, so that members meet.
var (
	drawName     = rapid.StringMatching(`[a-f]`)
	drawPriority = rapid.OneOf(rapid.Uint32Range(0, 3), rapid.Just(chain.DefaultPriority), rapid.Just(uint32(math.MaxUint32)))
	drawActions  = rapid.Custom(func(t *rapid.T) chain.Actions {
		return chain.Actions(rapid.Uint32Range(0, 1<<5-1).Draw(t, "actions"))
	})
)

// drawChange is a change that makes sense for some chain, not always for the one
// at hand.
var drawChange = rapid.Custom(func(t *rapid.T) Change {
	ch := Change{
		Op:   rapid.SampledFrom([]Op{Add, Add, Remove, Replace, Set, Set}).Draw(t, "op"),
		Name: drawName.Draw(t, "name"),
	}
	if ch.Op == Add || ch.Op == Set {
		if rapid.Bool().Draw(t, "with priority") {
			ch.Priority = ptr(drawPriority.Draw(t, "priority"))
		}
		switch rapid.IntRange(0, 5).Draw(t, "place") {
		case 0:
			ch.Before = drawName.Draw(t, "before")
		case 1:
			ch.After = drawName.Draw(t, "after")
		case 2:
			ch.Before, ch.After = drawName.Draw(t, "before"), drawName.Draw(t, "after")
		}
		switch rapid.IntRange(0, 9).Draw(t, "exclusive") {
		case 0:
			ch.Exclusive = yes
		case 1, 2:
			ch.Exclusive = no
		}
	}
	if ch.Op != Remove && rapid.Bool().Draw(t, "with actions") {
		ch.ProceedOn = ptr(drawActions.Draw(t, "actions"))
	}
	switch ch.Op {
	case Add:
		ch.Lifetime = rapid.SampledFrom([]Lifetime{"", Held, Permanent}).Draw(t, "lifetime")
	default:
		ch.Expect = rapid.SampledFrom([]uint64{0, 0, 0, 1, 2}).Draw(t, "expect")
	}
	return ch
})

// drawChain is a chain as transactions make it.
var drawChain = rapid.Custom(func(t *rapid.T) Chain {
	var c Chain
	for _, ch := range rapid.SliceOfN(drawChange, 0, 20).Draw(t, "history") {
		if r, err := c.Apply(Transaction{Changes: []Change{ch}}); err == nil {
			c = r.After
		}
	}
	return c
})

func TestWhateverIsAppliedTheChainStaysOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawChain.Draw(t, "before")
		was := before
		was.Members = slices.Clone(before.Members)
		tr := Transaction{Changes: rapid.SliceOfN(drawChange, 0, 5).Draw(t, "changes"), MaxMembers: rapid.IntRange(0, 5).Draw(t, "room"), Stats: rapid.SampledFrom([]*bool{nil, nil, yes, no}).Draw(t, "stats")}
		r, err := before.Apply(tr)
		if !cmp.Equal(before, was) {
			t.Fatal("the chain that was is no more")
		}
		if err != nil {
			var refused *Error
			if !errors.As(err, &refused) || refused.Hint == "" {
				t.Fatalf("%v does not say what to do", err)
			}
			if !cmp.Equal(r, Result{}) {
				t.Fatalf("refused, but there is a result: %+v", r)
			}
			return
		}
		after := r.After
		if err := after.Check(); err != nil {
			t.Fatal(err)
		}
		if len(r.IDs) != len(tr.Changes) {
			t.Fatalf("%d versions for %d changes", len(r.IDs), len(tr.Changes))
		}
		if tr.MaxMembers > 0 && len(after.Members) > max(tr.MaxMembers, len(before.Members)) {
			t.Fatalf("%d members where there is room for %d", len(after.Members), tr.MaxMembers)
		}
		same := func(a, b Chain) bool {
			return a.Exclusive == b.Exclusive && a.Stats == b.Stats && a.Locked == b.Locked && cmp.Equal(a.Members, b.Members)
		}
		switch {
		case after.Generation == before.Generation:
			if !cmp.Equal(after, before) || !r.Diff.Empty() || r.Diff.String() != "" || len(r.Diff.Members) > 0 {
				t.Fatal("something is different, and the generation is not")
			}
		case after.Generation != before.Generation+1:
			t.Fatalf("generation %d became %d", before.Generation, after.Generation)
		case same(after, before) || r.Diff.Empty():
			t.Fatal("nothing is different but the generation")
		}
		checkMembers(t, tr, before, after)
	})
}

// checkMembers checks the records of the members: those that nobody named are as
// they were, and those that differ tell so by their generation.
func checkMembers(t *rapid.T, tr Transaction, before, after Chain) {
	named := map[string]bool{}
	for _, ch := range tr.Changes {
		named[ch.Name] = true
	}
	rest := func(c Chain) []Member {
		return slices.DeleteFunc(slices.Clone(c.Members), func(m Member) bool { return named[m.Name] })
	}
	if !slices.Equal(rest(before), rest(after)) {
		t.Fatalf("members that no change named were %+v and are %+v", rest(before), rest(after))
	}
	for _, m := range after.Members {
		was := Member{}
		if at := before.Find(m.Name); at >= 0 {
			was = before.Members[at]
		}
		switch m.Generation {
		case after.Generation:
		case was.Generation:
			if m != was {
				t.Fatalf("%+v was %+v, and has its generation still", m, was)
			}
		default:
			t.Fatalf("%+v was %+v: whose generation does it have?", m, was)
		}
		if m.ID != was.ID && m.ID < before.NextID {
			t.Fatalf("%+v was %+v: its version was there already", m, was)
		}
	}
}

// All at once comes to the same chain as one by one, but for the numbers.
func TestATransactionIsItsChangesOneAfterTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawChain.Draw(t, "before")
		changes := rapid.SliceOfN(drawChange, 1, 5).Draw(t, "changes")
		for i := range changes {
			changes[i].Expect = 0 // means something else for each
		}
		r, err := before.Apply(Transaction{Changes: changes})
		single := before
		for i, ch := range changes {
			step, stepErr := single.Apply(Transaction{Changes: []Change{ch}})
			if stepErr != nil {
				var one, all *Error
				if !errors.As(stepErr, &one) || !errors.As(err, &all) || one.Op != all.Op || one.Member != all.Member || !errors.Is(one, all.Err) {
					t.Fatalf("change %d alone: %v; all: %v", i, stepErr, err)
				}
				return
			}
			single = step.After
		}
		if err != nil {
			t.Fatalf("one by one it works: %v", err)
		}
		bare := func(c Chain) []Member {
			members := slices.Clone(c.Members)
			for i := range members {
				members[i].Generation, members[i].ID = 0, 0
			}
			return members
		}
		if !slices.Equal(bare(r.After), bare(single)) || r.After.Exclusive != single.Exclusive {
			t.Fatalf("all: %+v\none by one: %+v", r.After, single)
		}
	})
}

func TestAPlaceIsHonoured(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawChain.Draw(t, "before")
		ch := drawChange.Filter(func(ch Change) bool { return ch.Op == Add || ch.Op == Set }).Draw(t, "change")
		r, err := before.Apply(Transaction{Changes: []Change{ch}})
		if err != nil {
			return
		}
		members := r.After.Members
		at := r.After.Find(ch.Name)
		m := members[at]
		if ch.Priority != nil && m.Priority != *ch.Priority {
			t.Fatalf("priority %d, asked for %d", m.Priority, *ch.Priority)
		}
		was := before.Find(ch.Name)
		switch {
		case ch.Before != "" && ch.After != "":
			if r.After.Find(ch.After) >= at || at >= r.After.Find(ch.Before) {
				t.Fatalf("not between the two: %+v", members)
			}
		case ch.Before != "":
			if at+1 != r.After.Find(ch.Before) || ch.Priority == nil && m.Priority != members[at+1].Priority {
				t.Fatalf("not right before: %+v", members)
			}
		case ch.After != "":
			if at-1 != r.After.Find(ch.After) || ch.Priority == nil && m.Priority != members[at-1].Priority {
				t.Fatalf("not right after: %+v", members)
			}
		case ch.Op == Add, m.Priority != before.Members[was].Priority:
			if at+1 < len(members) && members[at+1].Priority == m.Priority {
				t.Fatalf("before one that had the priority already: %+v", members)
			}
		case at != was:
			t.Fatalf("moved without being asked to: %+v", members)
		}
	})
}

// Whoever asks again finds nothing left to do.
func TestASetMadeAgainChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawChain.Draw(t, "before")
		ch := drawChange.Filter(func(ch Change) bool { return ch.Op == Set }).Draw(t, "set")
		ch.Expect = 0
		r, err := before.Apply(Transaction{Changes: []Change{ch}})
		if err != nil {
			return
		}
		again, err := r.After.Apply(Transaction{Changes: []Change{ch}})
		if err != nil || !again.Diff.Empty() {
			t.Fatalf("%v, %s", err, again.Diff)
		}
	})
}

// The lines of a diff without those marked as new are the chain that was, and
// without those marked as gone the chain to be.
func TestADiffIsBothChains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawChain.Draw(t, "before")
		r, err := before.Apply(Transaction{Changes: rapid.SliceOfN(drawChange, 1, 5).Draw(t, "changes")})
		if err != nil || r.Diff.Empty() {
			return
		}
		wantBefore, wantAfter := lines(before, r.After)
		var gotBefore, gotAfter []string
		for _, l := range strings.Split(strings.TrimSuffix(r.Diff.String(), "\n"), "\n")[2:] {
			if l[0] != '+' {
				gotBefore = append(gotBefore, l[1:])
			}
			if l[0] != '-' {
				gotAfter = append(gotAfter, l[1:])
			}
		}
		if !slices.Equal(gotBefore, wantBefore) || !slices.Equal(gotAfter, wantAfter) {
			t.Fatalf("%s", r.Diff)
		}
	})
}
