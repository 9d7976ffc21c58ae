package livetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		"hold": hold,
	})
}

// bench is a dispatcher that is attached nowhere, and the map that its members
// leave their trail in.
type bench struct {
	*testing.T
	*live.Dispatcher
	trail *ebpf.Map
}

func newBench(t *testing.T, o live.Options) *bench {
	t.Helper()
	return &bench{T: t, Dispatcher: load(t, o), trail: newTrail(t)}
}

func load(t testing.TB, o live.Options) *live.Dispatcher {
	t.Helper()
	d, err := live.Load(o)
	if err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			t.Logf("%+v", ve)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// newTrail makes the map of bpf/trail.c.
func newTrail(t *testing.T) *ebpf.Map {
	t.Helper()
	spec, err := bpfprog.LoadTrail()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(spec.Maps["trail"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// noFreplace is why members can't be had, found by trying once.
var noFreplace = struct {
	tried bool
	err   error
}{}

// needFreplace skips where the kernel takes no extensions.
func needFreplace(t *testing.T) {
	t.Helper()
	if !noFreplace.tried {
		m, err := newBench(t, live.Options{}).tryMember("walker", 0, pass)
		if err == nil {
			m.Close()
		} else if !errors.Is(err, object.ErrExtension) {
			t.Fatal(err)
		}
		noFreplace.tried, noFreplace.err = true, err
	}
	if noFreplace.err != nil {
		t.Skip(noFreplace.err)
	}
}

// tryMember loads one of the programs of bpf/trail.c for the dispatcher.
func (b *bench) tryMember(program string, number int, action uint32) (*object.Loaded, error) {
	b.Helper()
	o, err := object.Read("trail.o", bytes.NewReader(bpfprog.ELF("trail")))
	if err != nil {
		b.Fatal(err)
	}
	for _, a := range []string{fmt.Sprintf("number=%d", number), fmt.Sprintf("action=%d", action)} {
		if err := o.Set(a); err != nil {
			b.Fatal(err)
		}
	}
	e := b.Extension(0)
	return o.Load(object.LoadOptions{
		Program:         object.Choice{Name: program},
		MapReplacements: map[string]*ebpf.Map{"trail": b.trail},
		Extend:          &e,
	})
}

// load loads one of the programs of bpf/trail.c for the dispatcher, and closes it
// when the test ends.
func (b *bench) load(program string, number int, action uint32) kernel.FD {
	b.Helper()
	m, err := b.tryMember(program, number, action)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	return kernel.FD(m.Program.FD())
}

// attach attaches an extension to a slot until the test ends.
func (b *bench) attach(slot live.Slot, program kernel.FD) kernel.FD {
	b.Helper()
	link, err := b.Attach(slot, program)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { link.Close() }) // EBADF where the test has closed it
	return link
}

// member loads a member with the slot's number that returns XDP_PASS, and
// attaches it there.
func (b *bench) member(slot live.Slot) { b.returning(slot, pass) }

func (b *bench) returning(slot live.Slot, action uint32) {
	b.Helper()
	b.attach(slot, b.load("walker", int(slot), action))
}

func (b *bench) commit(slots ...live.Slot) {
	b.Helper()
	if err := b.Commit(live.SetOf(slots...)); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) proceedOn(slot live.Slot, actions ...chain.Action) {
	b.Helper()
	if err := b.SetProceedOn(slot, chain.Set(actions...)); err != nil {
		b.Fatal(err)
	}
}

// await lets packets leave the slots that were disabled.
func (b *bench) await() {
	b.Helper()
	if err := kernel.AwaitGracePeriod(); err != nil {
		b.Fatal(err)
	}
}

// run sends a packet through the dispatcher, and returns the numbers of the
// members that it met, and what came out.
func (b *bench) run() (met []int, action uint32) {
	b.Helper()
	action = b.runThrough(b.Program())
	return b.steps(), action
}

func (b *bench) runThrough(p *ebpf.Program) uint32 {
	b.Helper()
	if err := b.trail.Put(uint32(0), make([]byte, b.trail.ValueSize())); err != nil {
		b.Fatal(err)
	}
	action, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		b.Fatal(err)
	}
	return action
}

func (b *bench) steps() (met []int) {
	b.Helper()
	var steps struct {
		Count   uint32
		Numbers [64]uint32
	}
	if err := b.trail.Lookup(uint32(0), &steps); err != nil {
		b.Fatal(err)
	}
	for _, n := range steps.Numbers[:steps.Count] {
		met = append(met, int(n))
	}
	return met
}

// want checks which members a packet meets, and what comes out.
func (b *bench) want(action uint32, members ...int) {
	b.Helper()
	met, got := b.run()
	if got != action || !slices.Equal(met, members) {
		b.Fatalf("a packet met %v and came out as %d, want %v and %d (%s is enabled)", met, got, members, action, b.Enabled())
	}
}

const pass = uint32(chain.Pass)

// refused checks that the error is of that kind, and that its last words are
// what to do about it.
func refused(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	var e *xdp.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Fatalf("got: %v, want: %v", err, kind)
	}
	if e.Hint == "" || !strings.HasSuffix(err.Error(), "; "+e.Hint) {
		t.Errorf("%q does not end with what to do", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}
