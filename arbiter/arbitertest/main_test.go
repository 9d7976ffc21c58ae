package arbitertest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"contend": contend, "sweep and detach": sweepAndDetach, "open": openDefault})
}

// place is an interface and a state of its own.
type place struct {
	*testing.T
	dir     string
	veth    *kerneltest.Veth
	arbiter *arbiter.Arbiter
	hook    *xdp.Hook
	// said is what the arbiter logged.
	said []string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	kerneltest.NoLeaks(t)
	p := &place{T: t, dir: kerneltest.BPFFS(t), veth: kerneltest.NewVeth(t)}
	// A namespace goes with what is attached in it when the kernel gets to it.
	t.Cleanup(func() {
		for _, ns := range []*kerneltest.NetNS{p.veth.Near, p.veth.Far} {
			devices, _ := ns.Conn.Devices()
			for _, d := range devices {
				ns.Conn.Delete(d.Index) // loopback stays, a peer goes with the other
			}
		}
	})
	p.arbiter = p.open(arbiter.Options{})
	p.hook = p.at(p.veth.Near, p.veth.NearName)
	return p
}

func (p *place) open(o arbiter.Options) *arbiter.Arbiter {
	p.Helper()
	o.Dir = p.dir
	o.Log = func(msg string, args ...any) {
		for _, a := range args {
			if err, ok := a.(error); ok {
				msg += ": " + err.Error()
			}
		}
		p.said = append(p.said, msg)
	}
	a, err := arbiter.Open(o)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { a.Close() })
	return a
}

func (p *place) namespace(ns *kerneltest.NetNS) *xdp.Namespace {
	p.Helper()
	opened, err := xdp.OpenNamespace(ns.Path())
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { opened.Close() })
	return opened
}

func (p *place) at(ns *kerneltest.NetNS, name string) *xdp.Hook {
	p.Helper()
	h, err := p.namespace(ns).Hook(name, xdp.Auto)
	if err != nil {
		p.Fatal(err)
	}
	return h
}

// load loads one of the project's objects for the test's time.
func load(t testing.TB, name string) *object.Loaded {
	t.Helper()
	l, err := loadObject(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func loadObject(name string) (*object.Loaded, error) {
	o, err := open(name)
	if err != nil {
		return nil, err
	}
	return o.Load(choice(name))
}

func open(name string) (*object.Object, error) {
	return object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
}

// choice says which of an object's programs is meant.
func choice(name string) object.LoadOptions {
	if name == "tailcall" {
		return object.LoadOptions{Program: object.Choice{Name: "enter"}}
	}
	return object.LoadOptions{}
}

// attach attaches a program and returns what is attached then. At a shared hook
// that is the program; at an owned one it is loaded anew.
func (p *place) attach(h *xdp.Hook, name string, shared bool) uint32 {
	p.Helper()
	p.must(p.attaches(h, name, "pass", shared))
	return p.program(h)
}

// attaches attaches one of the project's objects.
func (p *place) attaches(h *xdp.Hook, name, object string, shared bool) (arbiter.Acknowledge, error) {
	p.Helper()
	if shared {
		return p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: h, Program: load(p, object), Name: name})
	}
	return apply(p.arbiter, h, add(p, name, object))
}

// add is the change that adds one of the project's objects to an owned hook.
func add(t testing.TB, name, object string) arbiter.Change {
	t.Helper()
	o, err := open(object)
	if err != nil {
		t.Fatal(err)
	}
	return arbiter.Change{Change: owned.Change{Op: owned.Add, Name: name}, Object: o, Load: choice(object)}
}

// apply makes changes of an owned hook.
func apply(a *arbiter.Arbiter, h *xdp.Hook, changes ...arbiter.Change) (arbiter.Acknowledge, error) {
	applied, err := a.Apply(context.Background(), arbiter.Transaction{Hook: h, Changes: changes})
	if err != nil {
		return nil, err
	}
	return applied.Acknowledge, nil
}

// replace replaces the only program and returns what is attached then.
func (p *place) replace(h *xdp.Hook) uint32 {
	p.Helper()
	p.must(p.replaces(h, "drop"))
	return p.program(h)
}

func (p *place) replaces(h *xdp.Hook, object string) (arbiter.Acknowledge, error) {
	p.Helper()
	if m := p.member(h); m != "" {
		c := add(p, m, object)
		c.Op = owned.Replace
		return apply(p.arbiter, h, c)
	}
	return p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: h, Program: load(p, object), Expect: xdp.Any})
}

func (p *place) detach(h *xdp.Hook) {
	p.Helper()
	p.must(p.detaches(h))
}

func (p *place) detaches(h *xdp.Hook) (arbiter.Acknowledge, error) {
	p.Helper()
	if m := p.member(h); m != "" {
		return apply(p.arbiter, h, arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: m}})
	}
	return p.arbiter.Detach(context.Background(), arbiter.DetachRequest{Hook: h})
}

// member is the name of the only member at an owned hook, empty for other hooks.
func (p *place) member(h *xdp.Hook) string {
	p.Helper()
	at, err := p.arbiter.At(h)
	if err != nil {
		p.Fatal(err)
	}
	if at == nil || at.Chain == nil {
		return ""
	}
	if len(at.Chain.Members) != 1 {
		p.Fatalf("the chain is %+v, want one member", at.Chain)
	}
	return at.Chain.Members[0].Name
}

func (p *place) must(ack arbiter.Acknowledge, err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
	if err := ack(); err != nil {
		p.Fatal(err)
	}
}

func (p *place) gc(dryRun bool) []arbiter.Stale {
	p.Helper()
	stale, err := p.arbiter.GC(context.Background(), dryRun)
	if err != nil {
		p.Fatal(err)
	}
	return stale
}

// status is what is shown of one hook's namespace, which must be one thing.
func (p *place) status(ns *kerneltest.NetNS) arbiter.Status {
	p.Helper()
	all, err := p.arbiter.Status([]*xdp.Namespace{p.namespace(ns)})
	if err != nil {
		p.Fatal(err)
	}
	if len(all) != 1 {
		p.Fatalf("status shows %+v, want one", all)
	}
	return all[0]
}

// wantAttached checks which program runs at the hook; 0 stands for none.
func (p *place) wantAttached(h *xdp.Hook, want uint32) {
	p.Helper()
	if got := p.program(h); got != want {
		p.Errorf("program %d is attached to %s, want %d", got, h, want)
	}
}

// program is the id of what is attached, 0 for nothing.
func (p *place) program(h *xdp.Hook) uint32 {
	p.Helper()
	s, err := h.Query()
	if err != nil {
		p.Fatal(err)
	}
	if at := s.At(xdp.Auto); at != nil {
		return at.Program.ID
	}
	return 0
}

func id(t testing.TB, l *object.Loaded) uint32 { return kerneltest.ProgramID(t, l.Program) }

// wantEntries checks how many directories there are.
func (p *place) wantEntries(n int) {
	p.Helper()
	if found := p.entries(); len(found) != n {
		p.Errorf("entries %v are there, want %d", found, n)
	}
}

func (p *place) entries() []string {
	p.Helper()
	dirs, err := os.ReadDir(p.dir)
	if err != nil {
		p.Fatal(err)
	}
	var names []string
	for _, d := range dirs {
		if d.IsDir() {
			names = append(names, d.Name())
		}
	}
	return names
}

// entry is the only directory there is.
func (p *place) entry() string {
	p.Helper()
	names := p.entries()
	if len(names) != 1 {
		p.Fatalf("entries %v are there, want one", names)
	}
	return filepath.Join(p.dir, names[0])
}

// refused checks that the error is of that kind and returns it.
func refused(t testing.TB, err, kind error) *xdp.Error {
	t.Helper()
	var e *xdp.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Fatalf("got %v, want %q", err, kind)
	}
	return e
}

// pin pins a map at a path.
func pin(t testing.TB, path string, l *object.Loaded, name string) {
	t.Helper()
	if err := kernel.Pin(kernel.FD(l.Maps[name].FD()), path); err != nil {
		t.Fatal(err)
	}
}
