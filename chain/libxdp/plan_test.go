package libxdp

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// chainOf is a chain in text, as in "a@10 b@50": members in their slots.
func chainOf(text string) []item {
	var items []item
	for i, word := range strings.Fields(text) {
		name, priority, _ := strings.Cut(word, "@")
		p, err := strconv.ParseUint(priority, 10, 32)
		if err != nil {
			panic(err)
		}
		items = append(items, item{
			Member: chain.Member{Name: name, Priority: uint32(p), ProceedOn: chain.DefaultProceedOn, Loaded: true, LoadTime: uint64(i)},
			id:     uint32(100 + i), old: i, added: none,
		})
	}
	return items
}

// addedOf is additions in text, as chainOf.
func addedOf(text string) []item {
	items := chainOf(text)
	for i := range items {
		items[i].Loaded, items[i].LoadTime, items[i].id = false, 0, 0
		items[i].old, items[i].added = none, i
	}
	return items
}

func textOf(items []item) string {
	var s []string
	for _, it := range items {
		s = append(s, fmt.Sprintf("%s@%d", it.Name, it.Priority))
	}
	return strings.Join(s, " ")
}

func ptr[T any](v T) *T { return &v }

func TestRequestsArePlanned(t *testing.T) {
	for name, c := range map[string]struct {
		there, added string
		request      request
		want         string
		err          error
	}{
		"a first member":    {"", "a@50", request{add: make([]Addition, 1)}, "a@50", nil},
		"in between":        {"a@10 c@30", "b@20", request{add: make([]Addition, 1)}, "a@10 b@20 c@30", nil},
		"many at once":      {"m@50", "z@1 a@99 b@50", request{add: make([]Addition, 3)}, "z@1 b@50 m@50 a@99", nil},
		"after its equal":   {"a@50", "a@50", request{add: make([]Addition, 1)}, "a@50 a@50", nil},
		"before a member":   {"a@10 b@20", "x@50", request{add: []Addition{{Before: "b"}}}, "a@10 x@15 b@20", nil},
		"after a member":    {"a@10 b@20", "x@50", request{add: []Addition{{After: "b"}}}, "a@10 b@20 x@30", nil},
		"after a new one":   {"a@10", "x@50 y@50", request{add: []Addition{{After: "a"}, {After: "x"}}}, "a@10 x@20 y@30", nil},
		"before a stranger": {"a@10", "x@50", request{add: []Addition{{Before: "b"}}}, "", chain.ErrNoMember},
		"both ways":         {"a@10", "x@50", request{add: []Addition{{Before: "a", Priority: ptr(uint32(1))}}}, "", xdp.ErrInvalid},
		"no room":           {"b@0", "x@50", request{add: []Addition{{Before: "b"}}}, "", chain.ErrNoRoom},
		"an eleventh":       {"a@1 b@2 c@3 d@4 e@5 f@6 g@7 h@8 i@9 j@10", "k@5", request{add: make([]Addition, 1)}, "", ErrFull},
		"eleven at once":    {"", "a@1 b@2 c@3 d@4 e@5 f@6 g@7 h@8 i@9 j@10 k@11", request{add: make([]Addition, 11)}, "", ErrFull},
		"nothing":           {"a@1", "", request{}, "", xdp.ErrInvalid},

		"one goes":           {"a@1 b@2 c@3", "", request{remove: []Target{{Name: "b"}}}, "a@1 c@3", nil},
		"one goes by its id": {"a@1 b@2 c@3", "", request{remove: []Target{{ID: 101}}}, "a@1 c@3", nil},
		"of a name one goes": {"a@1 a@2", "", request{remove: []Target{{Name: "a", ID: 101}}}, "a@1", nil},
		"all go":             {"a@1 b@2", "", request{remove: []Target{{Name: "b"}, {Name: "a"}}}, "", nil},
		"twice the same":     {"a@1 b@2", "", request{remove: []Target{{Name: "b"}, {ID: 101}}}, "a@1", nil},
		"a stranger goes":    {"a@1", "", request{remove: []Target{{Name: "b"}}}, "", ErrNoMember},
		"not quite it":       {"a@1", "", request{remove: []Target{{Name: "a", ID: 5}}}, "", ErrNoMember},
		"one of two goes":    {"a@1 a@2", "", request{remove: []Target{{Name: "a"}}}, "", ErrNoMember},
		"two by one name":    {"a@1 a@2", "", request{remove: []Target{{ID: 100}, {Name: "a"}}}, "", ErrNoMember},
		"nobody in words":    {"a@1", "", request{remove: []Target{{}}}, "", xdp.ErrInvalid},

		"replaced":                  {"a@1 b@2 c@3", "x@50", request{replace: &replacement{target: Target{Name: "b"}}}, "a@1 x@2 c@3", nil},
		"replaced among equals":     {"a@5 b@5 c@5", "bb@50", request{replace: &replacement{target: Target{Name: "b"}}}, "a@5 bb@5 c@5", nil},
		"replaced by a later name":  {"a@5 b@5 c@9", "x@50", request{replace: &replacement{target: Target{Name: "b"}}}, "a@5 x@5 c@9", nil},
		"replaced, number changes":  {"a@4 b@5 c@5", "x@50", request{replace: &replacement{target: Target{Name: "b"}}}, "a@4 x@4 c@5", nil},
		"replaced, first":           {"b@5 c@5", "x@50", request{replace: &replacement{target: Target{Name: "b"}}}, "x@0 c@5", nil},
		"replaced, no room":         {"a@5 b@5 c@5", "x@50", request{replace: &replacement{target: Target{Name: "b"}}}, "", chain.ErrNoRoom},
		"replaced and moved":        {"a@1 b@2 c@3", "x@0", request{replace: &replacement{Target{Name: "b"}, Addition{Priority: ptr(uint32(0))}}}, "x@0 a@1 c@3", nil},
		"replaced and moved after":  {"a@1 b@2 c@3", "x@0", request{replace: &replacement{Target{Name: "b"}, Addition{After: "c"}}}, "a@1 c@3 x@13", nil},
		"replaced beside itself":    {"a@1 b@2", "x@0", request{replace: &replacement{Target{Name: "b"}, Addition{After: "b"}}}, "", chain.ErrNoMember},
		"replaced moved both ways":  {"a@1 b@2", "x@0", request{replace: &replacement{Target{Name: "b"}, Addition{After: "a", Priority: ptr(uint32(1))}}}, "", xdp.ErrInvalid},
		"replaced by its namesake":  {"a@5 b@5 c@5", "b@50", request{replace: &replacement{target: Target{Name: "b"}}}, "a@5 b@5 c@5", nil},
		"replaced, it is not there": {"a@1", "x@0", request{replace: &replacement{target: Target{Name: "b"}}}, "", ErrNoMember},

		"set a priority":    {"a@1 b@2", "", request{set: &setting{Target{Name: "a"}, Settings{Priority: ptr(uint32(3))}}}, "b@2 a@3", nil},
		"set after":         {"a@1 b@2", "", request{set: &setting{Target{Name: "a"}, Settings{After: "b"}}}, "b@2 a@12", nil},
		"set beside itself": {"a@1 b@2", "", request{set: &setting{Target{Name: "a"}, Settings{After: "a"}}}, "", chain.ErrNoMember},
		"set both ways":     {"a@1 b@2", "", request{set: &setting{Target{Name: "a"}, Settings{After: "b", Priority: ptr(uint32(3))}}}, "", xdp.ErrInvalid},
		"set nothing":       {"a@1 b@2", "", request{set: &setting{Target{Name: "a"}, Settings{}}}, "", xdp.ErrInvalid},
		"set of nobody":     {"a@1 b@2", "", request{set: &setting{Target{Name: "x"}, Settings{Priority: ptr(uint32(3))}}}, "", ErrNoMember},
	} {
		t.Run(name, func(t *testing.T) {
			there := chainOf(c.there)
			got, err := c.request.plan(there, addedOf(c.added))
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if err == nil && textOf(got) != c.want {
				t.Errorf("got %q, want %q", textOf(got), c.want)
			}
			if textOf(there) != c.there {
				t.Errorf("the chain that is there became %q", textOf(there))
			}
		})
	}
}

func TestActionsStayUnlessOthersAreGiven(t *testing.T) {
	there := chainOf("a@1 b@2")
	there[1].ProceedOn = chain.Set(chain.Tx)
	added := addedOf("x@50")
	added[0].ProceedOn = chain.Set(chain.Drop)
	got, err := request{replace: &replacement{target: Target{Name: "b"}}}.plan(there, added)
	if err != nil || got[1].ProceedOn != chain.Set(chain.Tx) {
		t.Errorf("replaced: %v, %v", got, err)
	}
	got, err = request{replace: &replacement{Target{Name: "b"}, Addition{ProceedOn: ptr(chain.Set(chain.Drop))}}}.plan(there, added)
	if err != nil || got[1].ProceedOn != chain.Set(chain.Drop) {
		t.Errorf("replaced with actions: %v, %v", got, err)
	}
	got, err = request{set: &setting{Target{Name: "b"}, Settings{ProceedOn: ptr(chain.Actions(0))}}}.plan(there, nil)
	if err != nil || got[1].ProceedOn != 0 || got[0].ProceedOn != chain.DefaultProceedOn {
		t.Errorf("set: %v, %v", got, err)
	}
}

func TestAMemberIsNotAddedTwice(t *testing.T) {
	added := addedOf("a@1")
	added[0].id = 100
	if _, err := (request{add: make([]Addition, 1)}).plan(chainOf("a@1"), added); !errors.Is(err, xdp.ErrExists) {
		t.Error(err)
	}
	if _, err := (request{replace: &replacement{target: Target{ID: 101}}}).plan(chainOf("a@1 b@2"), added); !errors.Is(err, xdp.ErrExists) {
		t.Error(err)
	}
	if got, err := (request{replace: &replacement{target: Target{ID: 100}}}).plan(chainOf("a@1 b@2"), added); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	_, err := request{add: make([]Addition, 1)}.plan(chainOf("a@1 b@2 c@3 d@4 e@5 f@6 g@7 h@8 i@9 j@10"), addedOf("k@5"))
	want := "the chain is full: it would have 11 members, and the protocol of libxdp has 10 slots; remove a member first; an owned hook's chain has no such limit"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = request{remove: []Target{{Name: "x"}}}.plan(chainOf("a@1 b@2"), nil)
	want = `not found: no such member: the chain has no "x"; there are "a" (program 100), "b" (program 101)`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestTheDispatcherFollowsFromItsMembers(t *testing.T) {
	flags := func(spec string) []item {
		items := chainOf("a@1 b@2 c@3")[:len(spec)]
		for i, c := range spec {
			items[i].frags, items[i].deviceBound = c == 'f' || c == 'b', c == 'd' || c == 'b'
		}
		return items
	}
	for name, c := range map[string]struct {
		members                    string
		found, version             int
		frags, deviceBound, refuse bool
	}{
		"a fresh chain is of version 2":                {members: ".", version: 2},
		"version 2 stays":                              {members: "..", found: 2, version: 2},
		"version 3 stays":                              {members: "..", found: 3, version: 3},
		"version 1 can't be changed":                   {members: "..", found: 1, refuse: true},
		"all with fragments":                           {members: "fff", version: 2, frags: true},
		"all but one with fragments":                   {members: "f.f", version: 2},
		"a fresh chain bound to the device":            {members: "dd", version: 3, deviceBound: true},
		"a fresh chain bound to the device, fragments": {members: "bb", version: 3, deviceBound: true, frags: true},
		"version 2 can't be bound to the device":       {members: "d", found: 2, refuse: true},
		"version 3 with members bound to the device":   {members: "ddd", found: 3, version: 3, deviceBound: true},
		"version 3 with fragments in some":             {members: "bd", found: 3, version: 3, deviceBound: true},
	} {
		conf, err := planConf(flags(c.members), c.found)
		if (err != nil) != c.refuse {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if conf.version != c.version || conf.frags != c.frags || conf.deviceBound != c.deviceBound {
			t.Errorf("%s: %+v", name, conf)
		}
		for i, it := range flags(c.members) {
			if s := conf.slots[i]; s.frags != it.frags || s.deviceBound != it.deviceBound || s.priority != it.Priority {
				t.Errorf("%s: slot %d is %+v", name, i, s)
			}
		}
	}
	if err := checkPlan(flags("d.")); !errors.Is(err, xdp.ErrDeviceBound) {
		t.Errorf("one bound to the device beside one that is not: %v", err)
	}
}

// Whatever is asked for, who is there and not meant stays, in its order.
func TestAPlanTouchesNobodyElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string, most int) []item {
			var words []string
			for range rapid.IntRange(0, most).Draw(t, label) {
				words = append(words, rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name")+"@"+
					strconv.Itoa(rapid.IntRange(0, 3).Draw(t, "priority")))
			}
			return chainOf(strings.Join(words, " "))
		}
		there := draw("there", 8)
		sorted(there)
		for i := range there {
			there[i].old = i
		}
		meant := none
		var r request
		var added []item
		if len(there) > 0 {
			meant = rapid.IntRange(0, len(there)-1).Draw(t, "meant")
		}
		switch kind := rapid.IntRange(0, 3).Draw(t, "kind"); {
		case kind == 0 || meant == none:
			added = draw("added", 3)
			r.add = make([]Addition, len(added))
			meant = none
		case kind == 1:
			r.remove = []Target{{ID: there[meant].id}}
		case kind == 2:
			added = draw("by", 1)
			if len(added) == 0 {
				return
			}
			r.replace = &replacement{target: Target{ID: there[meant].id}}
		default:
			r.set = &setting{Target{ID: there[meant].id}, Settings{Priority: ptr(rapid.Uint32Max(4).Draw(t, "to"))}}
		}
		for i := range added {
			added[i].old, added[i].added, added[i].id, added[i].Loaded = none, i, 0, false
		}
		planned, err := r.plan(there, added)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(planned, func(a, b item) int { return chain.Compare(a.Member, b.Member) }) {
			t.Fatalf("not in order: %s", textOf(planned))
		}
		var before, after []item
		for i, it := range there {
			if i != meant {
				before = append(before, it)
			}
		}
		for _, it := range planned {
			if it.old != none && it.old != meant {
				after = append(after, it)
			}
		}
		if !slices.Equal(before, after) {
			t.Fatalf("%s became %s", textOf(before), textOf(after))
		}
		if r.replace != nil {
			at := slices.IndexFunc(planned, func(it item) bool { return it.added == 0 })
			if at != meant {
				t.Fatalf("the replacement of member %d is member %d: %s", meant, at, textOf(planned))
			}
		}
	})
}
