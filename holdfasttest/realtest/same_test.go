package realtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/holdfasttest"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

var ctx = context.Background()

// kinds are what tells errors apart.
var kinds = []error{
	xdp.ErrConflict, xdp.ErrNotAttached, xdp.ErrNotFound, xdp.ErrGone, xdp.ErrInvalid, xdp.ErrNotSupported, xdp.ErrExists,
	owned.ErrExists, owned.ErrGeneration, owned.ErrExclusive, owned.ErrLocked, owned.ErrNotEmpty, owned.ErrFull,
	owned.ErrNoMember, owned.ErrOrder, owned.ErrInvalid,
}

func kindsOf(err error) (is []error) {
	for _, k := range kinds {
		if errors.Is(err, k) {
			is = append(is, k)
		}
	}
	return is
}

// place is one interface of the kernel, and an arbiter there.
type place struct {
	*testing.T
	arbiter holdfast.Arbiter
	ns      *xdp.Namespace
	name    string
	where   string
	foreign *ebpf.Program
	link    *xdp.Link // if a foreign one holds the hook
}

func newPlace(t *testing.T) *place {
	kerneltest.NoLeaks(t)
	return placeAt(t, kerneltest.NewVeth(t))
}

func placeAt(t *testing.T, v *kerneltest.Veth) *place {
	a, err := holdfast.Open(arbiter.Options{Dir: kerneltest.BPFFS(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	ns, err := xdp.OpenNamespace(v.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return &place{T: t, arbiter: a, ns: ns, name: v.NearName, where: v.Near.Path(), foreign: kerneltest.Pass(t, "foreign", nil)}
}

// attachForeign attaches by netlink or a link, in the hook's mode.
func (p *place) attachForeign(mode xdp.Mode, held xdp.Holding) error {
	h := p.hook(mode)
	if held == xdp.HeldByNetlink {
		return h.Attach(p.foreign, xdp.Empty)
	}
	link, err := h.AttachLink(p.foreign)
	if err == nil {
		p.link = link
	}
	return err
}

func (p *place) hook(mode xdp.Mode) *xdp.Hook {
	h, err := p.ns.Hook(p.name, mode)
	if err != nil {
		p.Fatal(err)
	}
	return h
}

// detach detaches whatever is there, by force.
func (p *place) detach() {
	s, err := p.hook(xdp.Auto).Query()
	if err != nil {
		p.Fatal(err)
	}
	at := s.At(xdp.Auto)
	switch {
	case at == nil:
	case at.Held == xdp.HeldByNetlink:
		if err := p.hook(at.Mode).Detach(xdp.Any); err != nil {
			p.Fatal(err)
		}
	default:
		link, err := xdp.OpenID(at.LinkID)
		if err != nil {
			p.Fatal(err)
		}
		defer link.Close()
		if err := link.Detach(); err != nil {
			p.Fatal(err)
		}
	}
	if p.link != nil {
		p.link.Close()
		p.link = nil
	}
}

// both is a hook of the kernel and its like in memory.
type both struct {
	*rapid.T
	place   *place
	machine *holdfasttest.Machine
	memory  *holdfasttest.Process
	engine  arbiter.Engine
	members []pair
}

// pair is a held member on both.
type pair struct{ kernel, memory holdfast.Member }

func (b *both) hooks(mode xdp.Mode) (kernel, memory holdfast.Hook) {
	kernel = holdfast.Hook{Interface: b.place.name, Namespace: b.place.where, Mode: mode}
	memory = kernel
	memory.Namespace = ""
	return kernel, memory
}

// same fails unless the two errors are of the same kinds.
func (b *both) same(op string, kernel, memory error) {
	if !slices.Equal(kindsOf(kernel), kindsOf(memory)) || (kernel == nil) != (memory == nil) {
		b.Fatalf("%s:\nkernel %v\nmemory %v", op, kernel, memory)
	}
}

func drawMode(t *rapid.T) xdp.Mode {
	return rapid.SampledFrom([]xdp.Mode{xdp.Auto, xdp.Auto, xdp.Auto, xdp.Native, xdp.Generic}).Draw(t, "mode")
}

var objects = map[string]*object.Object{}

func file(name string) *object.Object {
	if objects[name] == nil {
		o, err := object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
		if err != nil {
			panic(err)
		}
		objects[name] = o
	}
	return objects[name]
}

var drawName = rapid.StringMatching(`[a-d]`)

func drawChange(t *rapid.T, generation uint64) arbiter.Change {
	ch := arbiter.Change{Change: owned.Change{
		Op:   rapid.SampledFrom([]owned.Op{owned.Add, owned.Add, owned.Add, owned.Remove, owned.Replace, owned.Set}).Draw(t, "op"),
		Name: drawName.Draw(t, "name"),
	}}
	if ch.Op == owned.Add || ch.Op == owned.Replace {
		ch.Object = file(rapid.SampledFrom([]string{"pass", "drop", "count"}).Draw(t, "object"))
	}
	if ch.Op == owned.Add || ch.Op == owned.Set {
		switch rapid.IntRange(0, 5).Draw(t, "place") {
		case 0:
			ch.Before = drawName.Draw(t, "before")
		case 1:
			ch.After = drawName.Draw(t, "after")
		case 2:
			p := rapid.Uint32Range(49, 51).Draw(t, "priority")
			ch.Priority = &p
		}
		if rapid.IntRange(0, 5).Draw(t, "exclusive") == 0 {
			exclusive := rapid.Bool().Draw(t, "wanted")
			ch.Exclusive = &exclusive
		}
	}
	if ch.Op != owned.Remove && rapid.IntRange(0, 3).Draw(t, "mask") == 0 {
		set := chain.Actions(rapid.Uint32Range(0, 1<<5-1).Draw(t, "proceed-on"))
		ch.ProceedOn = &set
	}
	if ch.Op == owned.Add {
		ch.Lifetime = rapid.SampledFrom([]owned.Lifetime{owned.Permanent, owned.Held}).Draw(t, "lifetime")
	} else if rapid.IntRange(0, 5).Draw(t, "expect") == 0 {
		ch.Expect = generation
	}
	return ch
}

// words are the transaction for a message.
func words(t holdfast.Transaction) string {
	changes := make([]owned.Change, len(t.Changes))
	for i, c := range t.Changes {
		changes[i] = c.Change
	}
	s, _ := json.Marshal(changes) // it can be
	counts := "as they are"
	if t.Stats != nil {
		counts = fmt.Sprint(*t.Stats)
	}
	return fmt.Sprintf("%s in mode %s, stats %s, dry %t", s, t.Hook.Mode, counts, t.DryRun)
}

func (b *both) transact() {
	kernel, memory := b.hooks(drawMode(b.T))
	now, _ := b.memory.Chain(ctx, memory) // where there is none, none is expected
	t := holdfast.Transaction{Engine: b.engine, DryRun: rapid.IntRange(0, 7).Draw(b.T, "dry run") == 0}
	for range rapid.IntRange(1, 3).Draw(b.T, "changes") {
		t.Changes = append(t.Changes, drawChange(b.T, now.Generation))
	}
	if rapid.IntRange(0, 7).Draw(b.T, "stats") == 0 {
		counts := rapid.Bool().Draw(b.T, "counts")
		t.Stats = &counts
	}
	if rapid.IntRange(0, 5).Draw(b.T, "expect of the chain") == 0 {
		t.Expect = &now.Generation
	}
	t.Hook = kernel
	onKernel, kernelErr := b.place.arbiter.Apply(ctx, t)
	t.Hook = memory
	inMemory, memoryErr := b.memory.Apply(ctx, t)
	if kernelErr == nil {
		// To be closed whatever is found.
		for i, m := range onKernel.Members {
			p := pair{kernel: m}
			if memoryErr == nil && i < len(inMemory.Members) {
				p.memory = inMemory.Members[i]
			}
			b.members = append(b.members, p)
		}
	}
	what := words(t)
	b.same(what, kernelErr, memoryErr)
	if kernelErr != nil {
		return
	}
	if d := gocmp.Diff(onKernel.Before, inMemory.Before); d != "" {
		b.Fatalf("%s: before:\n%s", what, d)
	}
	if d := gocmp.Diff(onKernel.After, inMemory.After); d != "" {
		b.Fatalf("%s: after:\n%s", what, d)
	}
	if d := gocmp.Diff(onKernel.Diff, inMemory.Diff); d != "" {
		b.Fatalf("%s: difference:\n%s", what, d)
	}
	if len(onKernel.Members) != len(inMemory.Members) {
		b.Fatalf("%s: %d members on the kernel, %d in memory", what, len(onKernel.Members), len(inMemory.Members))
	}
	for i, m := range onKernel.Members {
		if m.Name() != inMemory.Members[i].Name() {
			b.Fatalf("%s: member %d is %q on the kernel, %q in memory", what, i, m.Name(), inMemory.Members[i].Name())
		}
	}
}

func (b *both) closeMember() {
	if len(b.members) == 0 {
		b.Skip("nobody holds a member")
	}
	i := rapid.IntRange(0, len(b.members)-1).Draw(b.T, "member")
	m := b.members[i]
	b.members = slices.Delete(b.members, i, i+1)
	b.same("close "+m.kernel.Name(), m.kernel.Close(), m.memory.Close())
}

func (b *both) lock() {
	kernel, memory := b.hooks(drawMode(b.T))
	b.same("lock", b.place.arbiter.Lock(ctx, kernel), b.memory.Lock(ctx, memory))
}

func (b *both) unlock() {
	kernel, memory := b.hooks(drawMode(b.T))
	b.same("unlock", b.place.arbiter.Unlock(ctx, kernel), b.memory.Unlock(ctx, memory))
}

func (b *both) attachForeign() {
	mode := drawMode(b.T)
	held := rapid.SampledFrom([]xdp.Holding{xdp.HeldByNetlink, xdp.HeldByLink}).Draw(b.T, "held by")
	_, memory := b.hooks(mode)
	b.same("attach a foreign program", b.place.attachForeign(mode, held), b.machine.AttachForeign(memory, "foreign", held))
}

func (b *both) detach() {
	_, memory := b.hooks(xdp.Auto)
	b.place.detach()
	if err := b.machine.Detach(memory); err != nil {
		b.Fatal(err)
	}
}

// check compares what can be seen.
func (b *both) check() {
	for _, mode := range []xdp.Mode{xdp.Auto, xdp.Native, xdp.Generic} {
		kernel, memory := b.hooks(mode)
		onKernel, kernelErr := b.place.arbiter.Chain(ctx, kernel)
		inMemory, memoryErr := b.memory.Chain(ctx, memory)
		b.same("read the chain", kernelErr, memoryErr)
		if d := gocmp.Diff(bare(onKernel), bare(inMemory)); d != "" {
			b.Fatalf("the chain in mode %s, - on the kernel, + in memory:\n%s", mode, d)
		}
	}
	for _, m := range b.members {
		if m.memory.Err() != nil {
			select {
			case <-m.kernel.Done():
			case <-time.After(10 * time.Second):
				b.Fatalf("%q has ended in memory, %v, and its holder waits in vain for the kernel's", m.memory.Name(), m.memory.Err())
			}
		}
		b.same(m.kernel.Name()+" has ended", m.kernel.Err(), m.memory.Err())
	}
}

// bare is the chain without the numbers of versions, which Chain does not tell on
// a kernel.
func bare(c owned.Chain) owned.Chain {
	c.NextID, c.Members = 0, slices.Clone(c.Members)
	for i := range c.Members {
		c.Members[i].ID = 0
	}
	if len(c.Members) == 0 {
		c.Members = nil
	}
	return c
}

// clear empties the hook, after which it is as if nothing had ever been there.
func (b *both) clear() {
	for _, m := range b.members {
		m.kernel.Close()
	}
	b.place.detach()
	kernel, _ := b.hooks(xdp.Auto)
	// Whoever looks next forgets what was there.
	_, err := b.place.arbiter.Apply(ctx, holdfast.Transaction{Hook: kernel})
	if err != nil && !errors.Is(err, xdp.ErrGone) {
		b.Fatal(err)
	}
}

func TestInMemoryAsOnTheKernel(t *testing.T) {
	few := errors.Join(flag.Set("rapid.checks", strconv.Itoa(kerneltest.Rounds(20))), flag.Set("rapid.steps", "20"))
	if few != nil {
		t.Fatal(few)
	}
	for _, engine := range []arbiter.Engine{"", arbiter.Fused} {
		t.Run(fmt.Sprintf("engine %q", engine), func(t *testing.T) {
			p := newPlace(t)
			rapid.Check(t, func(rt *rapid.T) {
				m := holdfasttest.New(p.name)
				b := &both{T: rt, place: p, machine: m, memory: m.NewProcess(), engine: engine}
				defer b.clear()
				rt.Repeat(map[string]func(*rapid.T){
					"":       func(*rapid.T) { b.check() },
					"apply":  func(*rapid.T) { b.transact() },
					"again":  func(*rapid.T) { b.transact() }, // as often as all others together
					"more":   func(*rapid.T) { b.transact() },
					"close":  func(*rapid.T) { b.closeMember() },
					"lock":   func(*rapid.T) { b.lock() },
					"unlock": func(*rapid.T) { b.unlock() },
					"rival":  func(*rapid.T) { b.attachForeign() },
					"detach": func(*rapid.T) { b.detach() },
				})
			})
		})
	}
}

// The members of every chain are numbered from the same number on, so that one
// who only looks at numbers takes another's for its own.
func TestWhoeverClosesAMemberTakesOutNoOthers(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	p := placeAt(t, v)
	for what, another := range map[string]func(){
		"another interface has the name": func() {
			rename := func(index int, name string) {
				if err := errors.Join(v.Near.Conn.SetUp(index, false), v.Near.Conn.Rename(index, name)); err != nil {
					t.Fatal(err)
				}
			}
			rename(v.NearIndex, "renamed")
			if err := v.Near.Conn.AddVeth(v.NearName, "peer", v.Far.FD()); err != nil {
				t.Fatal(err)
			}
		},
		"the interface has another chain": func() { p.detach() },
	} {
		held := p.attach("held", false)
		another()
		if m := p.attach("others", true); m != nil {
			t.Fatalf("%s: a permanent member has a handle: %v", what, m)
		}
		if err := held.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		c, err := p.arbiter.Chain(ctx, holdfast.Hook{Interface: p.name, Namespace: p.where})
		if err != nil || len(c.Members) != 1 || c.Members[0].Name != "others" {
			t.Errorf("%s: the chain is %v, %v", what, c.Members, err)
		}
		p.detach()
	}
}

// attach makes a member, of which it returns the handle if it is held.
func (p *place) attach(name string, permanent bool) holdfast.Member {
	p.Helper()
	m, err := holdfast.AttachObject(ctx, p.name, file("pass"), holdfast.Options{
		Arbiter: p.arbiter, Hook: holdfast.Hook{Namespace: p.where}, Name: name, Permanent: permanent,
	})
	if err != nil {
		p.Fatal(err)
	}
	return m
}

func TestSeveralMembersAreNotAskedToRunAsOne(t *testing.T) {
	p := newPlace(t)
	add := func(name string) arbiter.Change {
		return arbiter.Change{Change: owned.Change{Op: owned.Add, Name: name}, Object: file("pass")}
	}
	h := holdfast.Hook{Interface: p.name, Namespace: p.where}
	for _, engine := range []arbiter.Engine{arbiter.Single, "fast"} {
		_, err := p.arbiter.Apply(ctx, holdfast.Transaction{Hook: h, Engine: engine, Changes: []arbiter.Change{add("a"), add("b")}})
		if !errors.Is(err, owned.ErrInvalid) {
			t.Errorf("engine %q: %v", engine, err)
		}
	}
	if c, err := p.arbiter.Chain(ctx, h); err != nil || len(c.Members) > 0 {
		t.Errorf("the chain is %v, %v", c.Members, err)
	}
}
