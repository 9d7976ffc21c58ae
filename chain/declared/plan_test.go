package declared

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
)

// words are the changes in one line.
func words(changes []owned.Change) string {
	var s []string
	for _, ch := range changes {
		w := string(ch.Op) + " " + ch.Name
		if ch.Priority != nil {
			w += fmt.Sprintf(" at %d", *ch.Priority)
		}
		if ch.After != "" {
			w += " after " + ch.After
		}
		if ch.Before != "" {
			w += " before " + ch.Before
		}
		if ch.ProceedOn != nil {
			w += " [" + ch.ProceedOn.String() + "]"
		}
		if ch.Exclusive != nil {
			w += fmt.Sprintf(" exclusive=%t", *ch.Exclusive)
		}
		s = append(s, w)
	}
	return strings.Join(s, ", ")
}

func TestAPlanIsTheChangesThatAreMissing(t *testing.T) {
	pass := chain.DefaultProceedOn
	member := func(name string, priority uint32) Member {
		return Member{Name: name, Object: name + ".o", Priority: priority, ProceedOn: pass}
	}
	is := func(name string, priority uint32, lifetime owned.Lifetime) owned.Member {
		return owned.Member{Name: name, Priority: priority, ProceedOn: pass, Lifetime: lifetime, Generation: 1, ID: uint32(name[0])}
	}
	abc := owned.Chain{Generation: 7, NextID: 900, Members: []owned.Member{
		is("a", 10, owned.Permanent), is("b", 50, owned.Permanent), is("c", 50, owned.Permanent), is("h", 60, owned.Held),
	}}
	alone := owned.Chain{Generation: 7, NextID: 900, Exclusive: true, Members: abc.Members[:1]}
	counting := abc
	counting.Stats = true
	same := Programs{"a": "1", "b": "1", "c": "1", "x": "1"}
	for name, c := range map[string]struct {
		hook   Hook
		now    owned.Chain
		wanted Programs
		prune  bool
		want   string
	}{
		"of what is there none": {Hook{Members: []Member{member("a", 10), member("b", 50), member("c", 50)}}, abc, same, true, ""},
		"of an empty hook all in order": {
			Hook{Members: []Member{member("a", 10), member("b", 50), member("c", 50)}}, owned.Chain{}, same, false,
			"add a at 10 [XDP_PASS], add b at 50 [XDP_PASS], add c at 50 after b [XDP_PASS]",
		},
		"what is not declared stays": {Hook{Members: []Member{member("a", 10)}}, abc, same, false, ""},
		"what is not declared goes with prune, and what is held stays": {
			Hook{Members: []Member{member("a", 10)}}, abc, same, true, "remove b, remove c",
		},
		"nothing declared is nothing wanted": {Hook{}, abc, same, true, "remove a, remove b, remove c"},
		"another program is a replace": {
			Hook{Members: []Member{member("a", 10), member("b", 50)}}, abc, Programs{"a": "2", "b": "1"}, false, "replace a",
		},
		"another program at another place is both": {
			Hook{Members: []Member{member("b", 50), member("a", 50)}}, abc, Programs{"a": "2", "b": "1"}, false, "replace a, set a at 50 after b",
		},
		"a program that nobody knows is replaced": {Hook{Members: []Member{member("a", 10)}}, abc, Programs{}, false, "replace a"},
		"one between equals": {
			Hook{Members: []Member{member("b", 50), member("x", 50), member("c", 50)}}, abc, same, false, "add x at 50 after b [XDP_PASS]",
		},
		"one before its equals": {
			Hook{Members: []Member{member("x", 50), member("b", 50), member("c", 50)}}, abc, same, false, "add x at 50 before b [XDP_PASS]",
		},
		"two that change places are one move": {
			Hook{Members: []Member{member("c", 50), member("b", 50)}}, abc, same, false, "set b at 50 after c",
		},
		"another mask": {
			Hook{Members: []Member{{Name: "a", Priority: 10}}}, abc, same, false, "set a []",
		},
		"the hook to itself, after the others have gone": {
			Hook{Exclusive: true, Members: []Member{member("a", 10)}}, owned.Chain{Members: abc.Members[:3]}, same, true,
			"remove b, remove c, set a exclusive=true",
		},
		"a new one with the hook to itself": {
			Hook{Exclusive: true, Members: []Member{member("x", 10)}}, alone, same, true, "remove a, add x at 10 [XDP_PASS] exclusive=true",
		},
		"the hook is given up before others come": {
			Hook{Members: []Member{member("x", 5), member("a", 10)}}, alone, same, false, "set a exclusive=false, add x at 5 [XDP_PASS]",
		},
		"a chain that is to count": {Hook{Stats: new(true), Members: []Member{member("a", 10)}}, abc, same, false, "stats=true"},
		"a chain that counts goes on where nothing is declared": {
			Hook{Members: []Member{member("a", 10)}}, counting, same, false, "",
		},
		"a chain that counts as it should":                 {Hook{Stats: new(true), Members: []Member{member("a", 10)}}, counting, same, false, ""},
		"a chain that counts and should not":               {Hook{Stats: new(false), Members: []Member{member("a", 10)}}, counting, same, false, "stats=false"},
		"a new chain that counts from the first packet on": {Hook{Stats: new(true), Members: []Member{member("a", 10)}}, owned.Chain{}, same, false, "add a at 10 [XDP_PASS], stats=true"},
	} {
		tr, err := Plan(c.hook, c.now, same, c.wanted, c.prune)
		got := words(tr.Changes)
		if tr.Stats != nil {
			got = strings.TrimPrefix(fmt.Sprintf("%s, stats=%t", got, *tr.Stats), ", ")
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", name, err, got, c.want)
		}
		if err == nil && *tr.Expect != c.now.Generation {
			t.Errorf("%s: it expects generation %d", name, *tr.Expect)
		}
		if _, err := c.now.Apply(tr); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	_, err := Plan(Hook{Members: []Member{member("h", 60)}}, abc, same, same, true)
	want := `add "h": the name is taken: "h" is a held member at priority 60, last changed in generation 1; choose another name, or wait until its holder ends`
	if !errors.Is(err, owned.ErrExists) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
