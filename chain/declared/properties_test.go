package declared

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/yamlfile"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var drawPriority = rapid.OneOf(rapid.Uint32Range(0, 3), rapid.Just(chain.DefaultPriority), rapid.Just(uint32(math.MaxUint32)))

var drawActions = rapid.Custom(func(t *rapid.T) chain.Actions {
	return chain.Actions(rapid.Uint32Range(0, 1<<5-1).Draw(t, "actions"))
})

// drawMembers are members as a file can declare them, with names from a few and
// whatever texts else.
var drawMembers = rapid.Custom(func(t *rapid.T) []Member {
	names := rapid.OneOf(rapid.StringMatching(`[a-f]`), rapid.String().Filter(func(s string) bool { return owned.CheckName(s) == nil }))
	path := rapid.OneOf(rapid.StringMatching(`[a-z]{1,8}\.o`), rapid.String().Filter(func(s string) bool { return yamlfile.NotEmpty("")(s) == nil }))
	members := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) Member {
		m := Member{
			Name: names.Draw(t, "name"), Object: path.Draw(t, "object"),
			Priority: drawPriority.Draw(t, "priority"), ProceedOn: drawActions.Draw(t, "proceed-on"),
		}
		switch rapid.IntRange(0, 3).Draw(t, "choice") {
		case 0:
			m.Program = path.Draw(t, "program")
		case 1:
			m.Section = path.Draw(t, "section")
		}
		set := rapid.MapOfN(rapid.StringMatching(`[a-z"#:\[\]\.!&*?|>%@'~0-9{},-]+`), rapid.String(), 0, 3).Draw(t, "set")
		if len(set) > 0 {
			m.Variables = set
		}
		return m
	}), 0, 5, func(m Member) string { return m.Name }).Draw(t, "members")
	slices.SortStableFunc(members, func(a, b Member) int { return int(int64(a.Priority) - int64(b.Priority)) })
	if len(members) == 0 {
		return nil
	}
	return members
})

var drawHook = rapid.Custom(func(t *rapid.T) Hook {
	h := Hook{
		Interface: rapid.OneOf(rapid.StringMatching(`eth[0-9]`), rapid.String().Filter(func(s string) bool { return xdp.CheckName(s) == nil })).Draw(t, "interface"),
		Mode:      rapid.SampledFrom([]xdp.Mode{xdp.Auto, xdp.Native, xdp.Generic, xdp.Offload}).Draw(t, "mode"),
		Engine:    rapid.SampledFrom([]Engine{Auto, Live, Fused}).Draw(t, "engine"),
		Members:   drawMembers.Draw(t, "members"),
	}
	if rapid.Bool().Draw(t, "in a namespace") {
		h.Namespace = rapid.StringMatching(`[a-z0-9/]+`).Draw(t, "namespace")
	}
	if counts := rapid.Bool().Draw(t, "counts"); rapid.Bool().Draw(t, "says so") && (len(h.Members) > 0 || !counts) {
		h.Stats = &counts
	}
	h.Exclusive = len(h.Members) == 1 && rapid.Bool().Draw(t, "exclusive")
	return h
})

func TestWhatIsWrittenIsReadAsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &File{Hooks: rapid.SliceOfNDistinct(drawHook, 1, 4, func(h Hook) string {
			return fmt.Sprintf("%s in %s, %t", h.Interface, h.Namespace, h.Mode == xdp.Offload)
		}).Draw(t, "hooks")}
		b, err := Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode("f", bytes.NewReader(b))
		if err != nil || !cmp.Equal(again, f) {
			t.Fatalf("%v, %s\n%s", err, cmp.Diff(f, again), b)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"version: 1\nhooks: []\n", "version: 1\nhooks:\n- interface: eth0\n  members: [{name: a, object: b, set: {c: 1}}]\n",
		"- &a\n- *a\n", "a: |\n  b\n c: d", "? a\n: b\n", "<<: {a: b}\n", "!!map {}\n", "a: \"\\x41\\u00e9", "%YAML 1.2\n---\n",
		"{[a]: b}", "a: [1, 2\n", "--- a\n--- b\n...\n", "\ufeffa: b\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Decode("f", bytes.NewReader(b))
		if err != nil {
			if e := (*Error)(nil); !errors.As(err, &e) || e.Detail == "" || e.Hint == "" || e.Line < 0 {
				t.Fatalf("%#v", err)
			}
			return
		}
		written, err := Encode(file)
		if err != nil {
			t.Fatalf("it is read and can't be written: %v", err)
		}
		again, err := Decode("f", bytes.NewReader(written))
		if err != nil || !cmp.Equal(again, file) {
			t.Fatalf("%v, %s\n%s", err, cmp.Diff(file, again), written)
		}
	})
}

// drawChain is a chain as transactions make it, with the members' digests, which
// are of few.
var drawChain = rapid.Custom(func(t *rapid.T) owned.Chain {
	var c owned.Chain
	for range rapid.IntRange(0, 8).Draw(t, "history") {
		ch := owned.Change{
			Op: owned.Add, Name: rapid.StringMatching(`[a-f]`).Draw(t, "name"),
			Lifetime: rapid.SampledFrom([]owned.Lifetime{owned.Permanent, owned.Permanent, owned.Permanent, owned.Held}).Draw(t, "lifetime"),
		}
		if c.Find(ch.Name) >= 0 {
			ch.Op, ch.Lifetime = owned.Set, ""
		}
		priority, actions := drawPriority.Draw(t, "priority"), drawActions.Draw(t, "actions")
		ch.Priority, ch.ProceedOn = &priority, &actions
		if rapid.IntRange(0, 4).Draw(t, "exclusive") == 0 {
			yes := true
			ch.Exclusive = &yes
		}
		if r, err := c.Apply(owned.Transaction{Changes: []owned.Change{ch}}); err == nil {
			c = r.After
		}
	}
	return c
})

func drawPrograms(t *rapid.T, label string, names []string) Programs {
	p := Programs{}
	for _, n := range names {
		p[n] = rapid.SampledFrom([]string{"x", "x", "y"}).Draw(t, label)
	}
	return p
}

func TestAPlanMakesTheChainThatIsDeclared(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now, h, prune := drawChain.Draw(t, "now"), drawHook.Draw(t, "hook"), rapid.Bool().Draw(t, "prune")
		running, wanted := drawPrograms(t, "running", names(now.Members)), drawPrograms(t, "wanted", declaredNames(h))
		tr, err := Plan(h, now, running, wanted, prune)
		held := slices.ContainsFunc(now.Members, func(m owned.Member) bool {
			return m.Lifetime == owned.Held && slices.Contains(declaredNames(h), m.Name)
		})
		if held != errors.Is(err, owned.ErrExists) || !held && err != nil {
			t.Fatalf("a declared name is held: %t; %v", held, err)
		}
		if held {
			return
		}
		stays := slices.DeleteFunc(slices.Clone(now.Members), func(m owned.Member) bool {
			return slices.Contains(declaredNames(h), m.Name) || prune && m.Lifetime != owned.Held
		})
		r, err := now.Apply(tr)
		if shared := len(stays) > 0 && (h.Exclusive || now.Exclusive && len(h.Members) > 0); shared || err != nil {
			if !shared || !errors.Is(err, owned.ErrExclusive) {
				t.Fatalf("%v of %+v", err, tr.Changes)
			}
			return
		}
		check(t, h, now, r, running, wanted, stays)

		for i, ch := range tr.Changes {
			switch ch.Op {
			case owned.Remove:
				delete(running, ch.Name)
			case owned.Add, owned.Replace:
				if r.After.Members[r.After.Find(ch.Name)].ID != r.IDs[i] {
					t.Fatalf("the version of %+v is not in the chain", ch)
				}
				running[ch.Name] = wanted[ch.Name]
			}
		}
		again, err := Plan(h, r.After, running, wanted, prune)
		if err != nil || len(again.Changes) > 0 {
			t.Fatalf("planned again: %v, %+v", err, again.Changes)
		}
	})
}

func names(members []owned.Member) []string {
	var s []string
	for _, m := range members {
		s = append(s, m.Name)
	}
	return s
}

func declaredNames(h Hook) []string {
	var s []string
	for _, m := range h.Members {
		s = append(s, m.Name)
	}
	return s
}

// check compares what came of a plan with what was declared.
func check(t *rapid.T, h Hook, now owned.Chain, r owned.Result, running, wanted Programs, stays []owned.Member) {
	var declared, others []owned.Member
	for _, m := range r.After.Members {
		if slices.Contains(declaredNames(h), m.Name) {
			declared = append(declared, m)
		} else {
			others = append(others, m)
		}
	}
	if !slices.Equal(others, stays) {
		t.Fatalf("others are %+v, want %+v", others, stays)
	}
	if !slices.Equal(names(declared), declaredNames(h)) {
		t.Fatalf("they run in the order %q, want %q", names(declared), declaredNames(h))
	}
	if len(h.Members) > 0 && r.After.Exclusive != h.Exclusive {
		t.Fatalf("exclusive: %t", r.After.Exclusive)
	}
	if h.Stats != nil && r.After.Stats != *h.Stats && len(r.After.Members) > 0 {
		t.Fatalf("counts: %t", r.After.Stats)
	}
	for i, m := range declared {
		if m.Priority != h.Members[i].Priority || m.ProceedOn != h.Members[i].ProceedOn {
			t.Fatalf("%+v, want %+v", m, h.Members[i])
		}
		was := now.Find(m.Name)
		if was >= 0 && (now.Members[was].ID != m.ID) != (running[m.Name] != wanted[m.Name]) {
			t.Fatalf("%q was replaced: %t", m.Name, now.Members[was].ID != m.ID)
		}
	}
}

// A chain that differs from the declared one in one member is changed there only.
func TestAPlanTouchesNoMoreThanItHasTo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHook.Filter(func(h Hook) bool { return len(h.Members) > 1 }).Draw(t, "hook")
		wanted := drawPrograms(t, "wanted", declaredNames(h))
		tr, err := Plan(h, owned.Chain{}, nil, wanted, false)
		if err != nil || len(tr.Changes) != len(h.Members) {
			t.Fatalf("%v, %+v", err, tr.Changes)
		}
		r, err := owned.Chain{}.Apply(tr)
		if err != nil {
			t.Fatal(err)
		}
		running := maps.Clone(wanted)
		name := rapid.SampledFrom(declaredNames(h)).Draw(t, "member")
		change := owned.Change{Op: owned.Set, Name: name}
		switch rapid.IntRange(0, 4).Draw(t, "difference") {
		case 0:
			change.Op = owned.Remove
		case 1:
			running[name] = "z"
			change.ProceedOn = new(chain.Actions)
		case 2:
			change.ProceedOn = new(chain.Actions)
		case 3:
			change.Priority = new(uint32)
		case 4:
			change.Before = declaredNames(h)[0]
		}
		now := r.After
		if r, err := now.Apply(owned.Transaction{Changes: []owned.Change{change}}); err == nil {
			now = r.After
		}
		tr, err = Plan(h, now, running, wanted, true)
		if err != nil {
			t.Fatal(err)
		}
		others := map[string]bool{}
		for _, ch := range tr.Changes {
			if ch.Name != name {
				others[ch.Name] = true
			}
		}
		// Two that have changed places can be put right by moving either.
		if len(others) > 1 || len(others) > 0 && change.Before == "" && change.Priority == nil {
			t.Fatalf("%q was changed by %+v, and is mended by %+v", name, change, tr.Changes)
		}
	})
}
