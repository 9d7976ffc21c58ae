package holdfasttest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/holdfasttest"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var ctx = context.Background()

var eth0 = holdfast.Hook{Interface: "eth0"}

func file(t *testing.T, name string) *object.Object {
	t.Helper()
	o, err := object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// scene is a machine with one interface, and a process.
type scene struct {
	*testing.T
	m *holdfasttest.Machine
	p *holdfasttest.Process
}

func newScene(t *testing.T) scene {
	m := holdfasttest.New("eth0")
	return scene{t, m, m.NewProcess()}
}

func (s scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// attach makes a member, by a process, and returns its handle if it is held.
func (s scene) attach(p *holdfasttest.Process, name string, permanent bool) holdfast.Member {
	s.Helper()
	m, err := holdfast.AttachObject(ctx, "eth0", file(s.T, "pass"), holdfast.Options{Arbiter: p, Name: name, Permanent: permanent})
	s.must(err)
	return m
}

// apply makes one change without an object.
func apply(p *holdfasttest.Process, h holdfast.Hook, foreign bool, ch owned.Change) error {
	_, err := p.Apply(ctx, holdfast.Transaction{Hook: h, Foreign: foreign, Changes: []arbiter.Change{{Change: ch}}})
	return err
}

func (s scene) want(names ...string) {
	s.Helper()
	c, err := s.p.Chain(ctx, eth0)
	s.must(err)
	var got []string
	for _, m := range c.Members {
		got = append(got, m.Name)
	}
	if !slices.Equal(got, names) {
		s.Errorf("the chain is %q, want %q", got, names)
	}
}

func (s scene) wantErr(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Errorf("%v, want %v", err, want)
	}
	if err != nil && !strings.Contains(err.Error(), "; ") {
		s.Errorf("%v does not say what to do", err)
	}
}

func ended(m holdfast.Member) bool {
	select {
	case <-m.Done():
		return true
	default:
		return false
	}
}

func TestAHeldMemberEndsWithItsHandleAndAPermanentOneStays(t *testing.T) {
	s := newScene(t)
	one := s.attach(s.p, "one", false)
	if m := s.attach(s.p, "two", true); m != nil {
		t.Errorf("a permanent member has a handle: %v", m)
	}
	three := s.attach(s.p, "three", false)
	s.want("one", "two", "three")
	s.must(errors.Join(one.Close(), one.Close()))
	s.want("two", "three")
	if one.Err() != nil || ended(one) {
		t.Errorf("who closes is told %v", one.Err())
	}
	s.p.Kill()
	s.p = s.m.NewProcess()
	s.want("two")
	s.must(three.Close()) // of a process that is no more
	s.want("two")
	s.must(apply(s.p, eth0, false, owned.Change{Op: owned.Remove, Name: "two"}))
	s.want()
}

func TestWhoeverLosesAMemberIsTold(t *testing.T) {
	s := newScene(t)
	m := s.attach(s.p, "one", false)
	other := s.m.NewProcess()
	err := apply(other, eth0, false, owned.Change{Op: owned.Remove, Name: "one"})
	s.wantErr(err, xdp.ErrConflict)
	if ended(m) || m.Err() != nil {
		t.Error("it ended, though it was refused")
	}
	s.must(apply(other, eth0, true, owned.Change{Op: owned.Remove, Name: "one"}))
	if !ended(m) {
		t.Fatal("it has not ended")
	}
	s.wantErr(m.Err(), xdp.ErrGone)
	// Closing it is nothing to the one that took its name.
	s.attach(other, "one", true)
	s.must(m.Close())
	s.want("one")
}

func TestWhatIsReplacedIsAnotherProgramWithAHandleOfItsOwn(t *testing.T) {
	s := newScene(t)
	m := s.attach(s.p, "one", false)
	before := s.m.Digest(eth0, "one")
	applied, err := s.p.Apply(ctx, holdfast.Transaction{Hook: eth0, Changes: []arbiter.Change{
		{Change: owned.Change{Op: owned.Replace, Name: "one"}, Object: file(t, "drop")},
	}})
	s.must(err)
	want, err := file(t, "drop").Digest(object.LoadOptions{})
	s.must(err)
	if got := s.m.Digest(eth0, "one"); got != want || got == before {
		t.Errorf("the digest was %s and is %s, want %s", before, got, want)
	}
	if !ended(m) || len(applied.Members) != 1 {
		t.Fatalf("the old version ended: %t; handles: %d", ended(m), len(applied.Members))
	}
	s.must(m.Close())
	s.want("one")
	s.must(applied.Members[0].Close())
	s.want()
}

func TestHandlesComeInTheOrderOfTheChanges(t *testing.T) {
	s := newScene(t)
	first := uint32(1)
	add := func(ch owned.Change) arbiter.Change {
		ch.Op, ch.Lifetime = owned.Add, owned.Held
		return arbiter.Change{Change: ch, Object: file(t, "pass")}
	}
	applied, err := s.p.Apply(ctx, holdfast.Transaction{Hook: eth0, Changes: []arbiter.Change{
		add(owned.Change{Name: "b"}), add(owned.Change{Name: "a", Priority: &first}),
	}})
	s.must(err)
	s.want("a", "b")
	if m := applied.Members; len(m) != 2 || m[0].Name() != "b" || m[1].Name() != "a" {
		t.Errorf("%v", m)
	}
}

func TestWhatStandsInTheWayIsAConflict(t *testing.T) {
	for _, held := range []xdp.Holding{xdp.HeldByNetlink, xdp.HeldByLink} {
		s := newScene(t)
		s.must(s.m.AttachForeign(eth0, "rival", held))
		_, err := holdfast.AttachObject(ctx, "eth0", file(t, "pass"), holdfast.Options{Arbiter: s.p})
		s.wantErr(err, xdp.ErrConflict)
		var conflict *xdp.Error
		if !errors.As(err, &conflict) || conflict.Rival == nil || conflict.Rival.Program.Name != "rival" || conflict.Rival.Held != held {
			t.Errorf("%v does not name the rival", err)
		}
		_, err = s.p.Chain(ctx, eth0)
		s.wantErr(err, xdp.ErrConflict)
		s.wantErr(s.p.Lock(ctx, eth0), xdp.ErrConflict)
		s.wantErr(s.p.Unlock(ctx, eth0), xdp.ErrConflict)
		s.wantErr(apply(s.p, eth0, true, owned.Change{Op: owned.Remove, Name: "rival"}), xdp.ErrConflict)
		s.wantErr(s.m.AttachForeign(eth0, "third", held), xdp.ErrConflict)
		s.must(s.m.Detach(eth0))
		s.attach(s.p, "one", true)
		s.wantErr(s.m.AttachForeign(eth0, "third", held), xdp.ErrConflict)
		s.want("one")
	}
}

func TestAMemberInTheWayIsNamedWithItsOwner(t *testing.T) {
	s := newScene(t)
	yes := true
	_, err := holdfast.AttachObject(ctx, "eth0", file(t, "pass"), holdfast.Options{Arbiter: s.p, Name: "one", Exclusive: true})
	s.must(err)
	_, err = s.p.Apply(ctx, holdfast.Transaction{Hook: eth0, Changes: []arbiter.Change{
		{Change: owned.Change{Op: owned.Add, Name: "two", Exclusive: &yes}, Object: file(t, "pass")},
	}})
	s.wantErr(err, owned.ErrExclusive)
	var member *arbiter.MemberError
	if !errors.As(err, &member) || member.Err.Rival.Name != "one" || member.Owner.PID == 0 || member.Since.IsZero() {
		t.Errorf("%v does not say whose it is", err)
	}
	s.wantErr(s.p.Lock(ctx, eth0), owned.ErrNotEmpty)
}

func TestALockedHookIsForNobody(t *testing.T) {
	s := newScene(t)
	s.wantErr(s.p.Unlock(ctx, eth0), owned.ErrInvalid)
	s.must(s.p.Lock(ctx, eth0))
	s.must(s.p.Lock(ctx, eth0))
	_, err := holdfast.AttachObject(ctx, "eth0", file(t, "pass"), holdfast.Options{Arbiter: s.m.NewProcess()})
	s.wantErr(err, owned.ErrLocked)
	s.wantErr(s.m.AttachForeign(eth0, "rival", xdp.HeldByNetlink), xdp.ErrConflict)
	s.p.Kill()
	s.p = s.m.NewProcess()
	if c, err := s.p.Chain(ctx, eth0); err != nil || !c.Locked {
		t.Errorf("%+v, %v: the lock went with the process", c, err)
	}
	s.must(s.p.Unlock(ctx, eth0))
	s.attach(s.p, "one", true)
}

func TestAMissingHookIsNotFoundAndAnEmptyOneHasNothingToChange(t *testing.T) {
	s := newScene(t)
	for _, h := range []holdfast.Hook{{Interface: "eth1"}, {Interface: "eth0", Namespace: "blue"}} {
		_, err := s.p.Chain(ctx, h)
		s.wantErr(err, xdp.ErrNotFound)
		s.wantErr(s.p.Lock(ctx, h), xdp.ErrNotFound)
		s.wantErr(apply(s.p, h, false, owned.Change{Op: owned.Remove, Name: "one"}), xdp.ErrNotFound)
	}
	s.wantErr(apply(s.p, eth0, false, owned.Change{Op: owned.Remove, Name: "one"}), xdp.ErrNotAttached)
	s.wantErr(apply(s.p, eth0, false, owned.Change{Op: owned.Add, Name: "one"}), xdp.ErrInvalid) // no object
	s.attach(s.p, "one", true)
	s.wantErr(apply(s.p, eth0, false, owned.Change{Op: owned.Remove, Name: "two"}), owned.ErrNoMember)
}

func TestNativeAndGenericAreOneHookAndTheCardIsAnother(t *testing.T) {
	m := holdfasttest.New()
	m.AddInterface(holdfasttest.Interface{Name: "eth0", Offload: true})
	m.AddInterface(holdfasttest.Interface{Name: "old0", GenericOnly: true})
	s := scene{t, m, m.NewProcess()}
	in := func(name string, mode xdp.Mode) holdfast.Hook { return holdfast.Hook{Interface: name, Mode: mode} }
	attach := func(h holdfast.Hook) error {
		_, err := holdfast.AttachObject(ctx, h.Interface, file(t, "pass"), holdfast.Options{Arbiter: s.p, Hook: h, Permanent: true})
		return err
	}
	s.wantErr(attach(in("old0", xdp.Native)), xdp.ErrNotSupported)
	s.wantErr(attach(in("old0", xdp.Offload)), xdp.ErrNotSupported)
	s.must(attach(in("old0", xdp.Auto)))
	if c, err := s.p.Chain(ctx, in("old0", xdp.Generic)); err != nil || len(c.Members) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	s.must(attach(in("eth0", xdp.Auto)))
	s.wantErr(attach(in("eth0", xdp.Generic)), xdp.ErrConflict)
	s.wantErr(apply(s.p, in("eth0", xdp.Generic), false, owned.Change{Op: owned.Remove, Name: "xdp_pass"}), xdp.ErrNotAttached)
	s.must(attach(in("eth0", xdp.Offload)))
	s.must(apply(s.p, in("eth0", xdp.Native), false, owned.Change{Op: owned.Remove, Name: "xdp_pass"}))
	if c, err := s.p.Chain(ctx, in("eth0", xdp.Offload)); err != nil || len(c.Members) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestAnInterfaceThatIsMadeAgainIsAnother(t *testing.T) {
	s := newScene(t)
	held := s.attach(s.p, "held", false)
	s.attach(s.p, "stays", true)
	s.must(s.m.DeleteInterface(eth0))
	_, err := s.p.Chain(ctx, eth0)
	s.wantErr(err, xdp.ErrNotFound)
	s.m.AddInterface(holdfasttest.Interface{Name: "eth0"})
	s.want()
	s.attach(s.p, "held", true)
	s.must(held.Close())
	s.want("held")
}

func TestAnInterfaceTakesItsChainAlong(t *testing.T) {
	s := newScene(t)
	held := s.attach(s.p, "held", false)
	s.attach(s.p, "stays", true)
	s.m.AddInterface(holdfasttest.Interface{Name: "eth7", Namespace: "blue"})
	s.wantErr(s.m.MoveInterface(eth0, "blue", "eth7"), xdp.ErrExists)
	s.must(s.m.MoveInterface(eth0, "blue", "eth0"))
	s.m.AddInterface(holdfasttest.Interface{Name: "eth0"})
	s.want()
	blue := holdfast.Hook{Interface: "eth0", Namespace: "blue"}
	names := func() string {
		c, err := s.p.Chain(ctx, blue)
		s.must(err)
		return fmt.Sprint(len(c.Members))
	}
	if names() != "2" {
		t.Errorf("%s members came along", names())
	}
	s.attach(s.p, "held", true) // the first of the new interface, as held was of the old
	s.must(held.Close())
	s.want("held")
	if names() != "1" {
		t.Errorf("%s members are left", names())
	}
}

func TestWhatWasDetachedByForceIsToldOnce(t *testing.T) {
	s := newScene(t)
	held := s.attach(s.p, "held", false)
	s.attach(s.p, "stays", true)
	s.must(s.m.Detach(eth0))
	s.want()
	if ended(held) {
		t.Error("the holder was told by nobody")
	}
	remove := owned.Change{Op: owned.Remove, Name: "stays"}
	s.wantErr(apply(s.p, eth0, false, remove), xdp.ErrGone)
	if !ended(held) {
		t.Error("the holder was not told")
	}
	s.wantErr(held.Err(), xdp.ErrGone)
	s.wantErr(apply(s.p, eth0, false, remove), xdp.ErrNotAttached)
	s.attach(s.p, "stays", true)
	s.want("stays")
}

func TestARefusedChangeChangesNothing(t *testing.T) {
	m := holdfasttest.New("eth0")
	broken := errors.New("the verifier said no")
	refuse := false
	m.Refuse = func(holdfast.Transaction) error {
		if refuse {
			return broken
		}
		return nil
	}
	s := scene{t, m, m.NewProcess()}
	s.attach(s.p, "one", true)
	refuse = true
	if _, err := holdfast.AttachObject(ctx, "eth0", file(t, "pass"), holdfast.Options{Arbiter: s.p, Name: "two"}); !errors.Is(err, broken) {
		t.Error(err)
	}
	s.want("one")
	r, err := s.p.Apply(ctx, holdfast.Transaction{Hook: eth0, DryRun: true, Changes: []arbiter.Change{{Change: owned.Change{Op: owned.Remove, Name: "one"}}}})
	s.must(err)
	if len(r.After.Members) != 0 || r.Diff.Empty() {
		t.Errorf("a dry run tells %+v", r)
	}
	s.want("one")
}

func TestAClosedArbiterKeepsItsMembersAndDoesNothingElse(t *testing.T) {
	s := newScene(t)
	m := s.attach(s.p, "one", false)
	closed := s.p
	s.must(closed.Close())
	s.wantErr(closed.Lock(ctx, eth0), xdp.ErrInvalid)
	s.p = s.m.NewProcess()
	s.want("one")
	s.must(m.Close())
	s.want()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.p.Chain(cancelled, eth0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestAnEngineThatCanNotRunTheChainIsRefused(t *testing.T) {
	s := newScene(t)
	s.attach(s.p, "one", true)
	add := []arbiter.Change{{Change: owned.Change{Op: owned.Add, Name: "two"}, Object: file(t, "pass")}}
	for engine, want := range map[arbiter.Engine]error{
		arbiter.Single: owned.ErrInvalid, "fast": owned.ErrInvalid, arbiter.Live: nil, arbiter.Fused: nil, "": nil,
	} {
		_, err := s.p.Apply(ctx, holdfast.Transaction{Hook: eth0, Engine: engine, DryRun: true, Changes: add})
		if !errors.Is(err, want) {
			t.Errorf("engine %q: %v, want %v", engine, err, want)
		}
	}
	s.want("one")
}

// Processes come and go at once, and each finds what it made.
func TestManyAtOnceLoseNothing(t *testing.T) {
	s := newScene(t)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			p := s.m.NewProcess()
			for range 20 {
				m, err := holdfast.AttachObject(ctx, "eth0", file(t, "pass"), holdfast.Options{Arbiter: p, Name: fmt.Sprintf("m%d", n)})
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(m.Err(), m.Close()); err != nil {
					t.Error(err)
				}
			}
			if _, err := holdfast.AttachObject(ctx, "eth0", file(t, "pass"), holdfast.Options{Arbiter: p, Name: fmt.Sprintf("m%d", n), Permanent: true}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	c, err := s.p.Chain(ctx, eth0)
	if err != nil || len(c.Members) != 8 || c.Check() != nil {
		t.Errorf("%+v, %v, %v", c, err, c.Check())
	}
}
