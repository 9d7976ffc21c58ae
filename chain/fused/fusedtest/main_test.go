package fusedtest

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

const (
	aborted  = uint32(chain.Aborted)
	drop     = uint32(chain.Drop)
	pass     = uint32(chain.Pass)
	redirect = uint32(chain.Redirect)
)

// read reads one of this project's objects and sets its variables.
func read(t testing.TB, name string, assignments ...string) *object.Object {
	t.Helper()
	o, err := object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range assignments {
		if err := o.Set(a); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// prepare closes what it prepares when the test ends.
func prepare(t testing.TB, o *object.Object, opts object.LoadOptions) *object.Prepared {
	t.Helper()
	p, err := o.Prepare(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// member is a program of one of this project's objects. The chain goes on after
// these actions.
func member(t testing.TB, object_, program string, on chain.Actions) fused.Member {
	t.Helper()
	p := prepare(t, read(t, object_), object.LoadOptions{Program: object.Choice{Name: program}})
	return fused.Member{Name: p.Info.Name, Priority: chain.DefaultPriority, ProceedOn: on, Program: p}
}

var onPass = chain.DefaultProceedOn

// load closes the chain when the test ends.
func load(t testing.TB, members ...fused.Member) *ebpf.Program {
	t.Helper()
	p, err := fused.Load(members)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// run gives the program one packet and returns its action.
func run(t testing.TB, p *ebpf.Program) uint32 {
	t.Helper()
	action, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 60)})
	if err != nil {
		t.Fatal(err)
	}
	return action
}
