package chaintest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) { kerneltest.Main(m, kerneltest.Commands{"transact": transact}) }

// place is an interface and a state of its own.
type place struct {
	*testing.T
	dir     string
	veth    *kerneltest.Veth
	arbiter *arbiter.Arbiter
	hook    *xdp.Hook
}

func newPlace(t *testing.T) *place {
	t.Helper()
	kerneltest.NoLeaks(t)
	return placeIn(t)
}

// placeIn is newPlace where a test has several.
func placeIn(t *testing.T) *place {
	t.Helper()
	p := &place{T: t, dir: kerneltest.BPFFS(t), veth: kerneltest.NewVeth(t)}
	a, err := arbiter.Open(arbiter.Options{Dir: p.dir, Log: func(msg string, args ...any) { t.Log(append([]any{msg}, args...)...) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	p.arbiter = a
	ns, err := xdp.OpenNamespace(p.veth.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if p.hook, err = ns.Hook(p.veth.NearName, xdp.Auto); err != nil {
		t.Fatal(err)
	}
	return p
}

func readObject(name string) (*object.Object, error) {
	return object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
}

func open(t testing.TB, name string) *object.Object {
	t.Helper()
	o, err := readObject(name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (p *place) apply(changes ...arbiter.Change) *arbiter.Applied {
	p.Helper()
	applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{Hook: p.hook, Changes: changes})
	if err != nil {
		p.Fatal(err)
	}
	if applied.Acknowledge != nil {
		if err := applied.Acknowledge(); err != nil {
			p.Fatal(err)
		}
	}
	return applied
}

func add(t testing.TB, object, name string) arbiter.Change {
	return arbiter.Change{Change: owned.Change{Op: owned.Add, Name: name}, Object: open(t, object)}
}

func remove(name string) arbiter.Change {
	return arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: name}}
}

// names are those of the chain that is there, nil where there is none.
func (p *place) names() []string {
	p.Helper()
	st, err := p.arbiter.At(p.hook)
	if err != nil {
		p.Fatal(err)
	}
	if st == nil || st.Chain == nil {
		return nil
	}
	var names []string
	for _, m := range st.Chain.Members {
		if !m.Ended {
			names = append(names, m.Name)
		}
	}
	return names
}

func (p *place) wantNames(want ...string) {
	p.Helper()
	if got := p.names(); !slices.Equal(got, want) {
		p.Errorf("the chain is %v, want %v", got, want)
	}
}

// engines are those that this kernel can run chains by. All kernels in virtual
// machines replace functions; the machine's own may not.
func engines(t *testing.T) []arbiter.Engine {
	t.Helper()
	p := newPlace(t)
	applied, err := p.arbiter.Apply(context.Background(), arbiter.Transaction{
		Hook: p.hook, Engine: arbiter.Live, Changes: []arbiter.Change{add(t, "pass", "one")},
	})
	switch {
	case err == nil:
		if err := applied.Acknowledge(); err != nil {
			t.Fatal(err)
		}
		p.apply(remove("one"))
		return []arbiter.Engine{arbiter.Live, arbiter.Fused}
	case kerneltest.InMachine() || !errors.Is(err, object.ErrExtension):
		t.Fatal(err)
	}
	p.wantNames()
	return []arbiter.Engine{arbiter.Fused}
}

// pins are the paths of all that is pinned in the state.
func (p *place) pins() []string {
	p.Helper()
	var all []string
	if err := bpffs.WalkPins(p.dir, func(path string) { all = append(all, path) }); err != nil {
		p.Fatal(err)
	}
	return all
}
