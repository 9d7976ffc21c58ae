package chaintest

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// onEachEngine runs the test for each engine of this kernel.
func onEachEngine(t *testing.T, f func(*place, arbiter.Engine)) {
	for _, engine := range engines(t) {
		t.Run(string(engine), func(t *testing.T) { f(newPlace(t), engine) })
	}
}

func (p *place) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *place) wantMet(marks ...byte) {
	p.Helper()
	if got := p.met(); !slices.Equal(got, marks) {
		p.Errorf("packets meet %v, want %v", got, marks)
	}
}

func (p *place) status() *arbiter.ChainStatus {
	p.Helper()
	st, err := p.arbiter.At(p.hook)
	if err != nil {
		p.Fatal(err)
	}
	if st == nil || st.Chain == nil {
		p.Fatal("there is no chain")
	}
	return st.Chain
}

func TestMembersRunInOrderAndGoOnAfterWhatTheyWereTold(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "b", Mark: 2})))
		p.wantMet(2)
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "c", Mark: 3})))
		p.wantMet(2, 3)
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "a", Mark: 1, Priority: pointer[uint32](10)})))
		p.wantMet(1, 2, 3)
		p.must(p.make(p.request("", step{Op: owned.Add, Name: "d", Mark: 4, After: "b"})))
		p.wantMet(1, 2, 4, 3)
		p.must(p.make(p.request("", step{Op: owned.Set, Name: "b", ProceedOn: pointer(chain.Set(chain.Drop))})))
		p.wantMet(1, 2)
		p.must(p.make(p.request("", step{Op: owned.Set, Name: "c", Before: "a"})))
		p.wantMet(3, 1, 2)
		p.must(p.make(p.request("", step{Op: owned.Replace, Name: "a", Mark: 9})))
		p.wantMet(3, 9, 2)
		if got := p.status().Engine; got != engine {
			t := p.T
			t.Errorf("the chain is %s, want %s", got, engine)
		}
		p.removeAll()
	})
}

// The kernel lets a link that has lost its last pin go a little later, and a
// holder that of a member that had to make way. Here somebody has it open.
func TestASlotWhoseLinkIsLeftIsNobodysConflict(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "a", Mark: 1}, step{Op: owned.Add, Name: "b", Mark: 2})))
		for range 3 {
			if engine == arbiter.Live {
				link, err := kernel.LinkByID(p.status().Members[1].LinkID)
				p.must(err)
				defer link.Close()
			}
			p.must(p.make(p.request("", step{Op: owned.Remove, Name: "b"})))
			p.must(p.make(p.request("", step{Op: owned.Add, Name: "b", Mark: 2})))
			p.wantMet(1, 2)
		}
		p.removeAll()
	})
}

func TestAMemberIsReplacedAndMovedWithItsMapsAsTheyAre(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		ctx := context.Background()
		file := open(p, "count")
		applied, err := p.arbiter.Apply(ctx, arbiter.Transaction{Hook: p.hook, Engine: arbiter.Single, Changes: []arbiter.Change{
			{Change: owned.Change{Op: owned.Add, Name: "counter"}, Object: file},
		}})
		p.must(err)
		p.must(applied.Acknowledge())
		count := func() uint64 {
			p.Helper()
			m := p.mapOf("counter")
			defer m.Close()
			var total uint64
			var key uint32
			var perCPU []uint64
			for all := m.Iterate(); all.Next(&key, &perCPU); {
				for _, n := range perCPU {
					total += n
				}
			}
			return total
		}
		p.wantMet()
		if n := count(); n == 0 {
			p.Fatal("the counter does not count")
		}
		before := count()
		// It gets company, and becomes a member of a chain.
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "a", Mark: 1})))
		p.wantMet(1)
		if n := count(); n <= before {
			p.Errorf("the counter went from %d to %d", before, n)
		}
		p.removeAll()
	})
}

// mapOf opens the map of a member by what the state has pinned of it.
func (p *place) mapOf(name string) *ebpf.Map {
	p.Helper()
	for _, pin := range p.pins() {
		if strings.Contains(pin, "/map-") && !strings.Contains(pin, "rodata") {
			m, err := ebpf.LoadPinnedMap(pin, nil)
			if err != nil {
				p.Fatal(err)
			}
			return m
		}
	}
	p.Fatalf("no map is pinned of %s: %v", name, p.pins())
	return nil
}

func TestWhoeverIsKilledLeavesAnEmptySlotAndTheOthersGoOn(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "a", Mark: 1})))
		h := p.hold(p.request(engine, step{Op: owned.Add, Name: "b", Mark: 2, Lifetime: owned.Held}))
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "c", Mark: 3})))
		p.wantMet(1, 2, 3)
		h.Kill()
		if engine == arbiter.Live {
			// The kernel does it, as soon as it gets to the last descriptor, and
			// no process of Holdfast's is there to help.
			p.eventually("the slot to be empty", func() bool { return slices.Equal(p.met(), []byte{1, 3}) })
		}
		if m := p.status().Members[1]; !m.Ended {
			p.Errorf("%+v has not ended", m)
		}
		// Whoever comes next takes it out.
		if _, err := p.arbiter.GC(context.Background(), false); err != nil {
			p.Error(err)
		}
		p.wantMet(1, 3)
		p.wantNames("a", "c")
		p.removeAll()
	})
}

// eventually waits for what the kernel does on its own.
func (p *place) eventually(what string, f func() bool) {
	p.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestAChainOfHeldMembersEndsWithThem(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		first := p.hold(p.request(engine, step{Op: owned.Add, Name: "a", Mark: 1, Lifetime: owned.Held}))
		second := p.hold(p.request(engine, step{Op: owned.Add, Name: "b", Mark: 2, Lifetime: owned.Held}))
		p.wantMet(1, 2)
		first.Kill()
		if engine == arbiter.Live {
			p.eventually("the first to be gone", func() bool { return slices.Equal(p.met(), []byte{2}) })
		}
		second.Kill()
		p.eventually("all to be gone", func() bool { return p.met() == nil })
		p.gone()
	})
}

func TestAHeldMemberFollowsItsChainToAnotherDispatcher(t *testing.T) {
	if !slices.Contains(engines(t), arbiter.Live) {
		t.Skip("the kernel replaces no functions of programs")
	}
	p := newPlace(t)
	h := p.hold(p.request(arbiter.Fused, step{Op: owned.Add, Name: "a", Mark: 1, Lifetime: owned.Held}))
	p.must(p.make(p.request(arbiter.Fused, step{Op: owned.Add, Name: "b", Mark: 2})))
	p.must(p.make(p.request(arbiter.Live, step{Op: owned.Add, Name: "c", Mark: 3})))
	p.wantMet(1, 2, 3)
	p.wantTakenOver(2)
	p.wantMet(1, 2, 3)
	h.Kill()
	p.eventually("the slot to be empty", func() bool { return slices.Equal(p.met(), []byte{2, 3}) })
	p.removeAll()
}

// wantTakenOver waits until holders have taken over the links that they are to
// hold, so that only those of so many permanent members have pins. Who is killed
// before leaves a member that lives by its pin until the next change.
func (p *place) wantTakenOver(permanent int) {
	p.Helper()
	p.eventually("the link to be taken over", func() bool {
		return len(slices.DeleteFunc(p.pins(), func(s string) bool { return !strings.Contains(s, "/link-") })) == permanent
	})
}

func TestASlotThatIsTakenIsNobodyElses(t *testing.T) {
	if !slices.Contains(engines(t), arbiter.Live) {
		t.Skip("the kernel replaces no functions of programs")
	}
	p := newPlace(t)
	p.must(p.make(p.request(arbiter.Live, step{Op: owned.Add, Name: "a", Mark: 1}, step{Op: owned.Add, Name: "b", Mark: 2})))
	s := p.status()
	one, two := s.Members[0], s.Members[1]
	fd, err := kernel.LinkByID(one.LinkID)
	p.must(err)
	info, err := kernel.ReadExtensionLink(fd)
	fd.Close()
	p.must(err)
	if info.TargetID == 0 {
		p.removeAll()
		return // before Linux 5.13 the kernel does not tell which function it is
	}
	dispatcher, err := kernel.ProgramByID(info.TargetID)
	p.must(err)
	defer dispatcher.Close()
	program, err := kernel.ProgramByID(two.Program.ID)
	p.must(err)
	defer program.Close()
	if link, err := kernel.LinkCreateExtension(int(program), int(dispatcher), info.Function); !errors.Is(err, unix.EBUSY) {
		p.Errorf("the raw call answers %v", err)
		link.Close()
	}
	p.wantMet(1, 2)
	p.removeAll()
}

func aloneUntilItShares(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		ctx := context.Background()
		alone := markChange(p, owned.Change{Op: owned.Add, Name: "a", Exclusive: pointer(true)}, 1)
		applied, err := p.arbiter.Apply(ctx, arbiter.Transaction{Hook: p.hook, Changes: []arbiter.Change{alone}})
		p.must(err)
		p.must(applied.Acknowledge())
		if got := p.status().Engine; got != arbiter.Single {
			p.Errorf("alone it runs %s", got)
		}
		err = p.make(p.request(engine, step{Op: owned.Add, Name: "b", Mark: 2}))
		var refused *arbiter.MemberError
		if !errors.Is(err, owned.ErrExclusive) || !errors.As(err, &refused) || refused.Owner.UID != 0 || !strings.Contains(err.Error(), `"a"`) {
			p.Errorf("a second member: %v", err)
		}
		p.wantMet(1)
		applied, err = p.arbiter.Apply(ctx, arbiter.Transaction{Hook: p.hook, Changes: []arbiter.Change{
			{Change: owned.Change{Op: owned.Set, Name: "a", Exclusive: pointer(false)}},
		}})
		p.must(err)
		p.must(applied.Acknowledge())
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "b", Mark: 2})))
		p.wantMet(1, 2)
		p.removeAll()
	})
}

func markChange(t testing.TB, c owned.Change, mark byte) arbiter.Change {
	t.Helper()
	o, err := markObject(mark)
	if err != nil {
		t.Fatal(err)
	}
	return arbiter.Change{Change: c, Object: o, Load: markOptions(false)}
}

func TestALockedHookTakesNothing(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ack, err := p.arbiter.Lock(ctx, p.hook)
	p.must(err)
	p.must(ack())
	p.wantMet() // packets pass
	if err := p.make(p.request("", step{Op: owned.Add, Name: "a", Mark: 1})); !errors.Is(err, owned.ErrLocked) || !strings.Contains(err.Error(), "locked by uid 0") {
		p.Errorf("a member of a locked hook: %v", err)
	}
	program := kerneltest.Pass(t, "other", nil)
	if err := p.hook.Attach(program, xdp.Any); !errors.Is(err, xdp.ErrConflict) {
		p.Errorf("by netlink: %v", err)
	}
	if _, err := p.hook.AttachLink(program); !errors.Is(err, xdp.ErrConflict) {
		p.Errorf("by a link: %v", err)
	}
	ack, err = p.arbiter.Unlock(ctx, p.hook)
	p.must(err)
	p.must(ack())
	p.gone()
	if _, err := p.arbiter.Unlock(ctx, p.hook); err == nil {
		p.Error("what is not locked can be unlocked")
	}
}

func adoptedOnRequest(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	file, err := markObject(1)
	p.must(err)
	loaded, err := file.Load(markOptions(false))
	p.must(err)
	p.must(p.hook.Attach(loaded.Program, xdp.Empty))
	p.must(loaded.Close())
	if err := p.make(p.request("", step{Op: owned.Add, Name: "b", Mark: 2})); !errors.Is(err, xdp.ErrConflict) {
		p.Errorf("a member where netlink has attached something: %v", err)
	}
	if _, err := p.arbiter.Adopt(ctx, arbiter.AdoptRequest{Hook: p.hook, Object: open(p, "pass")}); !errors.Is(err, xdp.ErrConflict) {
		p.Errorf("adopting another program: %v", err)
	}
	p.wantMet(1)
	adopted, err := p.arbiter.Adopt(ctx, arbiter.AdoptRequest{Hook: p.hook, Object: file, Load: markOptions(false), Name: "mine"})
	p.must(err)
	p.must(adopted.Acknowledge())
	if adopted.Gap <= 0 || adopted.ProgramID == 0 {
		p.Errorf("%+v", adopted)
	}
	p.wantNames("mine")
	p.must(p.make(p.request("", step{Op: owned.Add, Name: "b", Mark: 2})))
	p.wantMet(1, 2)
	p.removeAll()
}

func TestATransactionIsMadeAsAWholeOrNotAtAll(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		ctx := context.Background()
		p.must(p.make(p.request(engine, two...)))
		before := p.status()
		for name, changes := range map[string][]step{
			"a member that is not there": {{Op: owned.Remove, Name: "a"}, {Op: owned.Remove, Name: "nobody"}},
			"a name that is taken":       {{Op: owned.Replace, Name: "a", Mark: 7}, {Op: owned.Add, Name: "b", Mark: 8}},
		} {
			if err := p.make(p.request(engine, changes...)); err == nil {
				p.Errorf("%s: no error", name)
			}
			p.wantMet(1, 2)
		}
		// A program that the verifier refuses.
		bad := arbiter.Change{Change: owned.Change{Op: owned.Add, Name: "bad"}, Object: open(p, "bad")}
		_, err := p.arbiter.Apply(ctx, arbiter.Transaction{Hook: p.hook, Changes: []arbiter.Change{{Change: owned.Change{Op: owned.Remove, Name: "a"}}, bad}})
		if err == nil {
			p.Error("a program that is none was attached")
		}
		p.wantMet(1, 2)
		// What was expected is not there.
		stale := before.Generation - 1
		if stale == 0 {
			stale = before.Generation + 1
		}
		_, err = p.arbiter.Apply(ctx, arbiter.Transaction{Hook: p.hook, Expect: &stale, Changes: []arbiter.Change{{Change: owned.Change{Op: owned.Remove, Name: "a"}}}})
		if !errors.Is(err, owned.ErrGeneration) {
			p.Errorf("expecting another generation: %v", err)
		}
		dry, err := p.arbiter.Apply(ctx, arbiter.Transaction{Hook: p.hook, DryRun: true, Changes: []arbiter.Change{{Change: owned.Change{Op: owned.Remove, Name: "a"}}}})
		p.must(err)
		if len(dry.After.Members) != 1 || !strings.Contains(dry.Diff.String(), "-") {
			p.Errorf("a dry run tells %+v", dry)
		}
		if after := p.status(); after.Generation != before.Generation {
			p.Errorf("the generation went from %d to %d", before.Generation, after.Generation)
		}
		p.wantMet(1, 2)
		p.removeAll()
	})
}

func TestAChainIsFoundWhereverItsInterfaceWent(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "a", Mark: 1})))
		h := p.hold(p.request(engine, step{Op: owned.Add, Name: "b", Mark: 2, Lifetime: owned.Held}))
		index := p.veth.NearIndex
		p.must(p.veth.Near.Conn.SetUp(index, false)) // or the kernel renames nothing
		p.must(p.veth.Near.Conn.Rename(index, "renamed"))
		p.must(p.make(request{Dir: p.dir, Netns: p.veth.Near.Path(), Interface: "renamed", Steps: []step{{Op: owned.Add, Name: "c", Mark: 3}}}))
		p.wantMet(1, 2, 3)

		elsewhere := kerneltest.NewNetNS(p)
		p.must(p.veth.Near.Conn.Move(index, elsewhere.FD()))
		p.Cleanup(func() {
			devices, _ := elsewhere.Conn.Devices()
			for _, d := range devices {
				_ = elsewhere.Conn.Delete(d.Index)
			}
		})
		// Another interface of the same name and index is another.
		p.must(p.veth.Near.Conn.AddVethAt(index, p.veth.NearName, 77, "peer"))
		p.must(p.make(p.request(engine, step{Op: owned.Add, Name: "new", Mark: 9})))
		p.wantMet(9)
		there := request{Dir: p.dir, Netns: elsewhere.Path(), Interface: "renamed"}
		there.Steps = []step{{Op: owned.Set, Name: "c", Before: "a"}}
		p.must(p.make(there))
		ns, err := xdp.OpenNamespace(elsewhere.Path())
		p.must(err)
		defer ns.Close()
		moved := *p
		moved.hook, err = ns.Hook("renamed", xdp.Auto)
		p.must(err)
		moved.wantMet(3, 1, 2)
		moved.wantNames("c", "a", "b")
		// Its holder is not misled by the one that has come in its place.
		if engine == arbiter.Live {
			p.wantTakenOver(3) // the new one's, too
		}
		h.Kill()
		if engine == arbiter.Live {
			p.eventually("the slot to be empty", func() bool { return slices.Equal(moved.met(), []byte{3, 1}) })
		}
		p.must(p.make(request{Dir: p.dir, Netns: elsewhere.Path(), Interface: "renamed", Steps: []step{{Op: owned.Remove, Name: "c"}}}))
		moved.wantMet(1)
		p.must(p.make(request{Dir: p.dir, Netns: elsewhere.Path(), Interface: "renamed", Steps: []step{{Op: owned.Remove, Name: "a"}}}))
		// An interface that is deleted takes its chain with it.
		p.must(p.veth.Near.Conn.Delete(index))
		stale, err := p.arbiter.GC(context.Background(), false)
		p.must(err)
		if len(stale) != 1 || stale[0].Name != "new" {
			p.Errorf("gc told %+v", stale)
		}
		if dirs, _ := os.ReadDir(p.dir); slices.ContainsFunc(dirs, os.DirEntry.IsDir) {
			p.Errorf("%v is left", dirs)
		}
	})
}

func TestAMemberThatIsSetBackAndForthFindsItsSlotFree(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		p.must(p.make(p.request(engine, two...)))
		for n := range 20 {
			actions := chain.Set(chain.Pass)
			if n%2 == 0 {
				actions = chain.Set(chain.Drop)
			}
			p.must(p.make(p.request("", step{Op: owned.Set, Name: "a", ProceedOn: &actions})))
		}
		p.wantMet(1, 2)
		p.removeAll()
	})
}

func TestAMemberMeansAloneWhatItMeansInAChain(t *testing.T) {
	p := newPlace(t)
	add := arbiter.Change{Object: open(t, "drop"), Change: owned.Change{Op: owned.Add, Name: "a", ProceedOn: pointer(chain.Set(chain.Drop))}}
	applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Changes: []arbiter.Change{add}})
	p.must(err)
	p.must(applied.Acknowledge())
	if v := p.verdict(); v != uint32(chain.Pass) {
		t.Errorf("it drops, and the chain would go on: %d", v)
	}
	p.must(p.make(p.request("", step{Op: owned.Set, Name: "a", ProceedOn: pointer(chain.Set(chain.Pass))})))
	if v := p.verdict(); v != uint32(chain.Drop) {
		t.Errorf("it drops, and the chain does not go on: %d", v)
	}
	p.removeAll()
}
