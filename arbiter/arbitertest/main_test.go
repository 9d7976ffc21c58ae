package arbitertest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"contend": contend, "sweep and detach": sweepAndDetach, "open": open})
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
	o, err := object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		return nil, err
	}
	var choice object.Choice
	if name == "tailcall" {
		choice.Name = "enter"
	}
	return o.Load(object.LoadOptions{Program: choice})
}

func (p *place) attach(h *xdp.Hook, name string, shared bool) *object.Loaded {
	p.Helper()
	l := load(p, "pass")
	p.must(p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: h, Program: l, Name: name, Shared: shared}))
	return l
}

func (p *place) replace(h *xdp.Hook) *object.Loaded {
	p.Helper()
	l := load(p, "drop")
	p.must(p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: h, Program: l, Expect: xdp.Any}))
	return l
}

func (p *place) detach(h *xdp.Hook) {
	p.Helper()
	p.must(p.arbiter.Detach(context.Background(), arbiter.DetachRequest{Hook: h}))
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

// wantAttached checks what runs at the hook; nil stands for nothing.
func (p *place) wantAttached(h *xdp.Hook, l *object.Loaded) {
	p.Helper()
	var want, got uint32
	if l != nil {
		want = id(p, l)
	}
	s, err := h.Query()
	if err != nil {
		p.Fatal(err)
	}
	if at := s.At(xdp.Auto); at != nil {
		got = at.Program.ID
	}
	if got != want {
		p.Errorf("program %d is attached to %s, want %d", got, h, want)
	}
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
