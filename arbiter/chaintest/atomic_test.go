package chaintest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// state is a chain between two transactions, as packets can tell.
type state struct {
	marks []byte
	// after is the number of the last packet that may have been under way when
	// the transaction that made it returned: those behind it meet this state or
	// a later one.
	after uint64
}

// check follows the packets through the states. Each must have met exactly one
// state, none may have met an older one than a packet before it, and none an
// older one than was in force when it was sent.
func check(t *testing.T, states []state, packets []kerneltest.Marked) {
	t.Helper()
	at, exceptions := 0, 0
	for _, p := range packets {
		for at+1 < len(states) && p.Number > states[at+1].after {
			at++
		}
		was := at
		for at < len(states) && !slices.Equal(states[at].marks, p.Marks) {
			at++
		}
		if at == len(states) {
			at = was
			if exceptions++; exceptions < 10 {
				t.Errorf("packet %d met %v; the chain was %v then, and then %v", p.Number, p.Marks, states[at].marks, states[min(at+1, len(states)-1)].marks)
			}
		}
	}
	if exceptions > 0 {
		t.Errorf("%d packets met what no chain was", exceptions)
	}
}

// changer makes random transactions, and knows what comes of them.
type changer struct {
	*place
	engine  arbiter.Engine
	random  *rand.Rand
	serial  int
	marks   map[string]byte
	members []owned.Member
}

// transaction is a random one of one to five changes.
func (c *changer) transaction() []arbiter.Change {
	var changes []arbiter.Change
	names := []string{}
	for _, m := range c.members {
		names = append(names, m.Name)
	}
	touched := map[string]bool{}
	for n := 1 + c.random.IntN(5); n > 0; n-- {
		var free []string
		for _, name := range names {
			if !touched[name] {
				free = append(free, name)
			}
		}
		kind := c.random.IntN(5)
		switch {
		case len(free) == 0, kind == 0 && len(names) < 8:
			if len(names) >= 8 {
				continue
			}
			c.serial++
			name := fmt.Sprintf("m%d", c.serial)
			priority := uint32(c.random.IntN(4))
			changes = append(changes, arbiter.Change{
				Change: owned.Change{Op: owned.Add, Name: name, Priority: &priority}, Object: c.object(name), Load: markOptions(false),
			})
			touched[name], names = true, append(names, name)
		default:
			name := free[c.random.IntN(len(free))]
			touched[name] = true
			change := arbiter.Change{Change: owned.Change{Op: owned.Set, Name: name}}
			switch {
			case kind == 1 && len(names) > 2:
				change.Op = owned.Remove
				names = slices.DeleteFunc(names, func(n string) bool { return n == name })
			case kind == 2:
				change.Op, change.Object, change.Load = owned.Replace, c.object(name), markOptions(false)
			case kind == 3:
				actions := chain.Set(chain.Pass)
				if c.random.IntN(2) == 0 {
					actions = chain.Set(chain.Drop)
				}
				change.ProceedOn = &actions
			default:
				priority := uint32(c.random.IntN(4))
				change.Priority = &priority
			}
			changes = append(changes, change)
		}
	}
	return changes
}

// object is a program that leaves a mark of its own.
func (c *changer) object(name string) *object.Object {
	c.Helper()
	o := open(c, "mark")
	c.serial++
	mark := byte(1 + c.serial%250)
	if err := o.Set(fmt.Sprintf("mark=%d", mark)); err != nil {
		c.Fatal(err)
	}
	c.marks[name] = mark
	return o
}

// seen are the marks that a packet gets from the chain.
func (c *changer) seen() []byte {
	var marks []byte
	for _, m := range c.members {
		marks = append(marks, c.marks[m.Name])
		if !m.ProceedOn.Has(chain.Pass) {
			break
		}
	}
	return marks
}

func testAtomic(t *testing.T, engine arbiter.Engine, rounds int) {
	p := newPlace(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &changer{place: p, engine: engine, random: rand.New(rand.NewPCG(seed, 0)), marks: map[string]byte{}}
	apply := func(changes []arbiter.Change, stats *bool) {
		applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Changes: changes, Engine: engine, Stats: stats})
		if err != nil {
			t.Fatalf("%v: %v", changes, err)
		}
		if applied.Acknowledge != nil {
			if err := applied.Acknowledge(); err != nil {
				t.Fatal(err)
			}
		}
		c.members = applied.After.Members
	}
	apply([]arbiter.Change{
		{Change: owned.Change{Op: owned.Add, Name: "a"}, Object: c.object("a"), Load: markOptions(false)},
		{Change: owned.Change{Op: owned.Add, Name: "b"}, Object: c.object("b"), Load: markOptions(false)},
	}, nil)
	states := []state{{marks: c.seen()}}
	f := kerneltest.StartMarked(p.T, p.veth)
	changes, counts := 0, false
	for range rounds {
		before := f.Arrived()
		transaction := c.transaction()
		changes += len(transaction)
		var stats *bool
		if c.random.IntN(64) == 0 {
			counts = !counts
			stats = &counts
		}
		apply(transaction, stats)
		states = append(states, state{c.seen(), f.Begun()})
		// There have to be some packets for each, or nothing is shown.
		f.AwaitArrived(before + 2)
	}
	packets := f.End()
	check(t, states, packets)
	if len(packets) < 2*rounds {
		t.Errorf("only %d packets arrived, for %d transactions", len(packets), rounds)
	}
	t.Logf("COUNT transactions under flood %d", rounds)
	t.Logf("%d changes, %d packets", changes, len(packets))
}

func TestEachPacketMeetsTheChainBeforeATransactionOrAfterIt(t *testing.T) {
	for _, engine := range engines(t) {
		rounds := 1000
		if engine == arbiter.Fused && kerneltest.InMachine() {
			// Each loads all members anew, which takes long there; the machine's
			// own kernel makes them all.
			rounds = 100
		}
		t.Run(string(engine), func(t *testing.T) { testAtomic(t, engine, kerneltest.Rounds(rounds)) })
	}
}
