package chaintest

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// client is a process that the arbiter acts for.
type client struct {
	*place
	owner   arbiter.Owner
	arbiter *arbiter.Arbiter
	denies  error
	asked   []arbiter.Intent
}

func (p *place) client(uid int) *client {
	p.Helper()
	process, err := procfs.ReadProcess(os.Getppid())
	p.must(err)
	c := &client{place: p, owner: arbiter.Owner{UID: uid, Process: process, Comm: "client"}}
	c.arbiter = p.arbiter.OnBehalf(arbiter.Behalf{Owner: c.owner, Permit: func(i arbiter.Intent) error {
		c.asked = append(c.asked, i)
		return c.denies
	}})
	return c
}

// lease makes the transaction, and returns the leases of the members it adds.
func (c *client) lease(r request) []*arbiter.Lease {
	c.Helper()
	applied, err := r.apply(c.arbiter)
	c.must(err)
	c.must(applied.Acknowledge())
	if len(applied.Held) > 0 {
		c.Errorf("this process holds %d members of the client's", len(applied.Held))
	}
	for _, l := range applied.Leases {
		c.Cleanup(func() { l.Close() })
	}
	return applied.Leases
}

func heldStep(name string, mark byte) step {
	return step{Op: owned.Add, Name: name, Mark: mark, Lifetime: owned.Held}
}

func TestALeaseEndsWhenNobodyHasItsDescriptors(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		c := p.client(1000)
		leases := c.lease(p.request(engine, heldStep("a", 1), step{Op: owned.Add, Name: "b", Mark: 2}, heldStep("c", 3)))
		if len(leases) != 2 || leases[0].Member != "a" || leases[1].Member != "c" {
			p.Fatalf("got the leases %+v", leases)
		}
		if got := p.status().Members[0].Owner; got.UID != 1000 || got.Process != c.owner.Process {
			p.Errorf("a is recorded as %v's", got)
		}
		if (engine == arbiter.Live) != (leases[0].Link != nil) {
			p.Errorf("a %s lease has the link %v", engine, leases[0].Link)
		}
		p.wantMet(1, 2, 3)
		leases[0].Close()
		if engine == arbiter.Live {
			p.eventually("the slot to be empty", func() bool { return slices.Equal(p.met(), []byte{2, 3}) })
		}
		p.wantEnded("a")
		p.forget()
		p.wantMet(2, 3)
		p.wantNames("b", "c")
		p.must(p.make(p.request("", step{Op: owned.Remove, Name: "b"})))
		p.wantMet(3)
		leases[1].Close()
		p.wantEnded("c")
		p.forget()
		p.gone()
	})
}

// forget does what somebody does who has noticed that a lease has ended.
func (p *place) forget() {
	p.Helper()
	chains, err := p.arbiter.Chains()
	p.must(err)
	for _, c := range chains {
		p.must(p.arbiter.Forget(context.Background(), c.Entry))
	}
}

func (p *place) wantEnded(name string) {
	p.Helper()
	p.eventually(name+" to have ended", func() bool {
		chains, err := p.arbiter.Chains()
		p.must(err)
		for _, c := range chains {
			for _, m := range c.Members {
				if m.Name == name {
					return m.Ended && m.Leased
				}
			}
		}
		p.Fatalf("there is no %s in %+v", name, chains)
		return false
	})
}

func TestAMemberAloneIsLeasedAndTheHookStays(t *testing.T) {
	p := newPlace(t)
	c := p.client(1000)
	l := c.lease(p.request("", heldStep("a", 1)))[0]
	p.wantMet(1)
	want := arbiter.Single
	if slices.Contains(engines(t), arbiter.Live) {
		want = arbiter.Live
	}
	if got := p.status().Engine; got != want {
		t.Errorf("the chain is %s, want %s", got, want)
	}
	if len(l.Maps) == 0 {
		t.Error("the holder was given no maps")
	}
	// Nobody keeps the hook's link but the pin.
	if _, err := p.arbiter.GC(context.Background(), false); err != nil {
		t.Error(err)
	}
	p.wantMet(1)
	l.Close()
	p.wantEnded("a")
	p.forget()
	p.gone()
}

func TestALeaseMovesWithItsChain(t *testing.T) {
	if !slices.Contains(engines(t), arbiter.Live) {
		t.Skip("the kernel replaces no functions of programs")
	}
	p := newPlace(t)
	c := p.client(1000)
	l := c.lease(p.request(arbiter.Fused, heldStep("a", 1), heldStep("x", 7)))
	p.must(p.make(p.request(arbiter.Live, step{Op: owned.Add, Name: "b", Mark: 2})))
	p.wantMet(1, 7, 2)
	chains, err := p.arbiter.Chains()
	p.must(err)
	if m := chains[0].Members[0]; !m.Waits || m.Ended {
		t.Fatalf("a member that moved is %+v", m)
	}
	link, err := p.arbiter.Waiting(l[0].Entry, l[0].ID)
	p.must(err)
	if link == nil {
		t.Fatal("no link waits")
	}
	defer link.Close()
	claimed, err := c.arbiter.Claim(context.Background(), link)
	p.must(err)
	if claimed.ID != l[0].ID || claimed.Link != nil {
		t.Errorf("claimed %+v", claimed)
	}
	if chains, _ = p.arbiter.Chains(); chains[0].Members[0].Waits {
		t.Error("a link that was taken over waits still")
	}
	// The other one was restarted meanwhile, and has its token.
	claimed, err = c.arbiter.Claim(context.Background(), l[1].Token)
	p.must(err)
	if claimed.Member != "x" || claimed.Link == nil {
		t.Fatalf("claimed %+v by the token", claimed)
	}
	defer claimed.Close()
	_, err = c.arbiter.Claim(context.Background(), claimed.Link)
	p.must(err)
	p.wantMet(1, 7, 2)
	claimed.Close()
	p.eventually("the slot of x to be empty", func() bool { return slices.Equal(p.met(), []byte{1, 2}) })
	l[0].Close()
	link.Close()
	p.eventually("the slot of a to be empty", func() bool { return slices.Equal(p.met(), []byte{2}) })
	p.removeAll()
}

func TestWhoDiesBeforeTakingOverIsForgotten(t *testing.T) {
	if !slices.Contains(engines(t), arbiter.Live) {
		t.Skip("the kernel replaces no functions of programs")
	}
	p := newPlace(t)
	l := p.client(1000).lease(p.request(arbiter.Fused, heldStep("a", 1)))
	p.must(p.make(p.request(arbiter.Live, step{Op: owned.Add, Name: "b", Mark: 2})))
	l[0].Close()
	p.wantEnded("a")
	p.forget()
	p.wantMet(2)
	p.removeAll()
}

func TestADescriptorOfSomethingElseProvesNothing(t *testing.T) {
	onEachEngine(t, func(p *place, engine arbiter.Engine) {
		c := p.client(1000)
		l := c.lease(p.request(engine, heldStep("a", 1), step{Op: owned.Add, Name: "b", Mark: 2}))[0]
		other := kerneltest.NewVeth(p)
		ns, err := xdp.OpenNamespace(other.Near.Path())
		p.must(err)
		defer ns.Close()
		h, err := ns.Hook(other.NearName, xdp.Auto)
		p.must(err)
		link, err := h.AttachLink(kerneltest.Pass(p, "pass", nil))
		p.must(err)
		defer link.Close()
		null, err := os.Open("/dev/null")
		p.must(err)
		defer null.Close()
		program := kerneltest.Pass(p, "other", nil)
		wrong := map[string]*os.File{
			"a file": null, "an XDP link": p.file(link.FD()), "a program": p.file(program.FD()),
		}
		for name, m := range l.Maps {
			wrong["map "+name] = m
		}
		for what, f := range wrong {
			if got, err := c.arbiter.Claim(context.Background(), f); !errors.Is(err, xdp.ErrNotFound) {
				p.Errorf("%s proves %v (error %v)", what, got, err)
			}
		}
		token := p.file(int(l.Token.Fd()))
		if _, err := c.arbiter.Claim(context.Background(), token); err != nil {
			p.Errorf("a duplicate of the token: %v", err)
		}
		p.must(p.make(p.request("", step{Op: owned.Remove, Name: "b"})))
		applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Changes: p.changes(step{Op: owned.Remove, Name: "a"}), Foreign: true})
		p.must(err)
		p.must(applied.Acknowledge())
		if got, err := c.arbiter.Claim(context.Background(), token); !errors.Is(err, xdp.ErrNotFound) {
			p.Errorf("the token of a member that is gone proves %v (error %v)", got, err)
		}
		l.Close()
		token.Close()
		p.gone()
	})
}

func (p *place) file(fd int) *os.File {
	p.Helper()
	own, err := kernel.FD(fd).Dup()
	p.must(err)
	f := os.NewFile(uintptr(own), "descriptor")
	p.Cleanup(func() { f.Close() })
	return f
}

func (p *place) changes(steps ...step) []arbiter.Change {
	p.Helper()
	var all []arbiter.Change
	for _, s := range steps {
		c, err := s.change()
		p.must(err)
		all = append(all, c)
	}
	return all
}

func TestAllThatAClientAsksForIsAskedAbout(t *testing.T) {
	p := newPlace(t)
	c := p.client(1000)
	p.must(p.make(p.request("", step{Op: owned.Add, Name: "mine", Mark: 1})))
	denied := &xdp.Error{Op: "attach", Err: xdp.ErrPermission}
	c.denies = denied
	for verb, s := range map[arbiter.Verb]step{
		arbiter.VerbAttach:  heldStep("a", 2),
		arbiter.VerbReplace: {Op: owned.Replace, Name: "mine", Mark: 3},
		arbiter.VerbSet:     {Op: owned.Set, Name: "mine", Priority: pointer[uint32](3)},
		arbiter.VerbDetach:  {Op: owned.Remove, Name: "mine"},
	} {
		c.asked = nil
		if _, err := p.request("", s).apply(c.arbiter); !errors.Is(err, xdp.ErrPermission) {
			t.Errorf("%s: %v", verb, err)
		}
		if len(c.asked) != 1 || c.asked[0].Verb != verb || c.asked[0].Member != s.Name {
			t.Errorf("%s: asked about %+v", verb, c.asked)
			continue
		}
		i := c.asked[0]
		if (verb == arbiter.VerbAttach) != (i.Owner == nil) {
			t.Errorf("%s: asked about a member of %v", verb, i.Owner)
		}
		if loads := verb == arbiter.VerbAttach || verb == arbiter.VerbReplace; loads != (i.Digest != "" && i.Cost.Instructions > 0 && i.Cost.ObjectSize > 0 && i.Cost.MapMemory > 0) {
			t.Errorf("%s: asked about %q, %+v", verb, i.Digest, i.Cost)
		}
	}
	for verb, f := range map[arbiter.Verb]func(context.Context, *xdp.Hook) (arbiter.Acknowledge, error){
		arbiter.VerbLock: c.arbiter.Lock, arbiter.VerbUnlock: c.arbiter.Unlock,
	} {
		c.asked = nil
		if _, err := f(context.Background(), p.hook); !errors.Is(err, xdp.ErrPermission) || len(c.asked) != 1 || c.asked[0].Verb != verb {
			t.Errorf("%s: %v, asked about %+v", verb, err, c.asked)
		}
	}
	p.wantMet(1)
	p.removeAll()
}
