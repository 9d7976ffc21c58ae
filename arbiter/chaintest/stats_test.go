package chaintest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// counting makes a transaction after which the chain counts, or does not.
func (p *place) counting(on bool, engine arbiter.Engine, changes ...arbiter.Change) {
	p.Helper()
	applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Engine: engine, Stats: &on, Changes: changes})
	if err != nil {
		p.Fatal(err)
	}
	if applied.After.Stats != on {
		p.Fatalf("afterwards the chain counts: %t, want %t", applied.After.Stats, on)
	}
	if err := applied.Acknowledge(); err != nil {
		p.Fatal(err)
	}
}

// chain is the hook's, which has one.
func (p *place) chain() *arbiter.ChainStatus {
	p.Helper()
	st, err := p.arbiter.At(p.hook)
	if err != nil || st == nil || st.Chain == nil {
		p.Fatalf("%+v: %v", st, err)
	}
	return st.Chain
}

// counters are those of the member of that name.
func (p *place) counters(name string) stats.Counters {
	p.Helper()
	for _, m := range p.chain().Members {
		if m.Name == name && m.Counters != nil {
			return *m.Counters
		}
	}
	p.Fatalf("nothing is counted of %s", name)
	return stats.Counters{}
}

// send has the hook's program run on so many packets.
func (p *place) send(n int) {
	p.Helper()
	for range n {
		p.run()
	}
}

// ending adds a member that returns the action, after which the chain goes on.
func ending(t testing.TB, name string, action chain.Action) arbiter.Change {
	c := add(t, "drop", name)
	on := chain.Set(action)
	c.ProceedOn = &on
	return c
}

func TestWhatIsCountedIsTheMembersWhateverComesBesideIt(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(string(engine), func(t *testing.T) {
			p := newPlace(t)
			p.counting(true, engine, add(t, "pass", "a"), ending(t, "b", chain.Drop), add(t, "drop", "c"))
			sent := uint64(0)
			send := func(n uint64) {
				t.Helper()
				p.send(int(n))
				sent += n
			}
			want := func(name string, v stats.Verdicts) {
				t.Helper()
				if got := p.counters(name); got.Verdicts != v || v.Sum() > 0 && got.Timed > v.Sum() {
					t.Errorf("of %s %+v was counted, want %+v", name, got, v)
				}
			}
			send(10)
			want("a", stats.Verdicts{Pass: 10})
			want("b", stats.Verdicts{Drop: 10})
			want("c", stats.Verdicts{Drop: 10})

			// Another member moves the others, another mask moves one, and a member of
			// the same name is another one.
			p.apply(add(t, "pass", "first"))
			p.apply(arbiter.Change{Change: owned.Change{Op: owned.Set, Name: "first", Before: "a"}})
			both := chain.Set(chain.Drop, chain.Pass)
			p.apply(arbiter.Change{Change: owned.Change{Op: owned.Set, Name: "b", ProceedOn: &both}})
			p.apply(arbiter.Change{Change: owned.Change{Op: owned.Replace, Name: "c"}, Object: open(t, "pass")})
			send(7)
			want("first", stats.Verdicts{Pass: 7})
			want("a", stats.Verdicts{Pass: sent})
			want("b", stats.Verdicts{Drop: sent})
			want("c", stats.Verdicts{Pass: 7})
			if got := p.chain().Packets; got != sent {
				t.Errorf("%d packets were counted of %d", got, sent)
			}

			// A place that a member had is another's sooner or later.
			next := p.chain().Members[0].ID + stats.Places
			for p.chain().Members[0].ID <= next {
				var again []arbiter.Change
				for range stats.Places / 4 {
					again = append(again, remove("first"), add(t, "pass", "first"))
				}
				p.apply(append(again, arbiter.Change{Change: owned.Change{Op: owned.Set, Name: "first", Before: "a"}})...)
				send(1)
				want("first", stats.Verdicts{Pass: 1})
			}
			want("a", stats.Verdicts{Pass: sent})

			// Off and on again it begins anew.
			p.counting(false, "")
			if c := p.chain(); c.Stats || c.Packets != 0 || c.Members[0].Counters != nil {
				t.Errorf("the chain does not count, and tells %+v", c)
			}
			send(3)
			p.counting(true, "")
			want("a", stats.Verdicts{})
			want("first", stats.Verdicts{})
			send(5)
			want("a", stats.Verdicts{Pass: 5})
			want("first", stats.Verdicts{Pass: 5})

			p.apply(remove("first"), remove("a"), remove("b"), remove("c"))
			p.apply(add(t, "pass", "a"))
			if p.chain().Stats {
				t.Error("a new chain counts because the one before it did")
			}
		})
	}
}

func TestAMemberAloneRunsInAChainToBeCounted(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(string(engine), func(t *testing.T) {
			p := newPlace(t)
			p.apply(add(t, "count", "a"))
			if got := p.chain().Engine; got != arbiter.Single {
				t.Fatalf("the only member runs %s", got)
			}
			p.send(3)
			on := true
			_, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Engine: arbiter.Single, Stats: &on})
			if !errors.Is(err, owned.ErrInvalid) {
				t.Errorf("as itself: %v", err)
			}
			p.counting(true, engine)
			p.send(4)
			if c := p.chain(); c.Engine != engine || c.Members[0].Counters.Verdicts != (stats.Verdicts{Pass: 4}) {
				t.Errorf("the chain is %+v", c)
			}
			if got := p.packets(p.chain().Members[0]); got != 7 {
				t.Errorf("the member itself counted %d packets of 7", got)
			}
		})
	}
}

func TestAHookWithoutMembersCountsNothing(t *testing.T) {
	p := newPlace(t)
	on := true
	if _, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Stats: &on}); err == nil {
		t.Error("a hook where nothing is attached counts")
	}
}

// packets is what bpf/count.c has counted as that member.
func (p *place) packets(m arbiter.MemberStatus) uint64 {
	p.Helper()
	paths, err := filepath.Glob(filepath.Join(p.dir, "*", fmt.Sprintf("m%d", m.ID), "map-packets"))
	if err != nil || len(paths) != 1 {
		p.Fatalf("the map of member %d is pinned as %q: %v", m.ID, paths, err)
	}
	pinned, err := ebpf.LoadPinnedMap(paths[0], nil)
	if err != nil {
		p.Fatal(err)
	}
	defer pinned.Close()
	var each []uint64
	if err := pinned.Lookup(uint32(0), &each); err != nil {
		p.Fatal(err)
	}
	sum := uint64(0)
	for _, n := range each {
		sum += n
	}
	return sum
}

// What the chain counts is what the members count themselves, of every packet that
// came, on whichever processor, and while what runs is exchanged.
func TestUnderAFloodVerdictsAddUpToPackets(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(string(engine), func(t *testing.T) {
			p := newPlace(t)
			p.counting(true, engine, add(t, "count", "a"), add(t, "count", "b"), add(t, "drop", "end"))
			const packets = 20_000
			f := kerneltest.StartFlood(t, p.veth, kerneltest.FloodOptions{Packets: packets, Duration: time.Minute})
			for round := range 8 {
				f.AwaitSent(uint64(round+1) * packets / 10)
				p.apply(add(t, "pass", "between"))
				p.apply(remove("between"))
			}
			f.AwaitSent(packets)
			sent, received := f.Stop()
			if received != 0 {
				t.Errorf("%d of %d packets got by what drops them", received, sent)
			}
			// A packet may be under way still, and the kernel sends some of its own.
			var a, b, end stats.Counters
			var mine uint64
			if !kerneltest.Eventually(func() bool {
				before := p.packets(p.chain().Members[0])
				a, b, end = p.counters("a"), p.counters("b"), p.counters("end")
				mine = p.packets(p.chain().Members[1])
				return before == mine && mine == p.packets(p.chain().Members[0]) && mine+p.veth.Lost(t) >= sent
			}) {
				t.Errorf("of %d packets %d were lost, and the members have met %d", sent, p.veth.Lost(t), mine)
			}
			if want := (stats.Verdicts{Pass: mine}); a.Verdicts != want || b.Verdicts != want {
				t.Errorf("of the members %+v and %+v were counted, and they counted %d packets", a.Verdicts, b.Verdicts, mine)
			}
			if end.Verdicts != (stats.Verdicts{Drop: mine}) {
				t.Errorf("of the last member %+v was counted, of %d packets", end.Verdicts, mine)
			}
			if a.Timed == 0 || a.Timed > mine/4 || a.PerRun() <= 0 {
				t.Errorf("%d runs of %d were timed, and took %s", a.Timed, mine, a.Time)
			}
		})
	}
}

// Another dispatcher takes another link, which whoever holds the member has to get.
func TestHeldMembersAreCountedAndStayHeld(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(string(engine), func(t *testing.T) {
			p := newPlace(t)
			held := add(t, "pass", "held")
			held.Lifetime = owned.Held
			applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{
				Hook: p.hook, Engine: engine, Changes: []arbiter.Change{held, add(t, "pass", "stays")},
			})
			if err != nil {
				t.Fatal(err)
			}
			h := applied.Held[0]
			defer h.Close()
			for range 3 {
				p.counting(true, "")
				p.send(2)
				if got := p.counters("held").Verdicts; got != (stats.Verdicts{Pass: 2}) {
					t.Errorf("of the held member %+v was counted", got)
				}
				p.counting(false, "")
			}
			if err := h.Err(); err != nil {
				t.Fatal(err)
			}
			p.counting(true, "")
			if err := h.Remove(context.Background(), p.hook); err != nil {
				t.Fatal(err)
			}
			p.send(2)
			p.wantNames("stays")
			if got := p.counters("stays").Verdicts; got != (stats.Verdicts{Pass: 2}) {
				t.Errorf("of the one that stays %+v was counted", got)
			}
		})
	}
}
