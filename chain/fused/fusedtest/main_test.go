package fusedtest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"load as nobody": loadAsNobody})
}

// loadAsNobody is a process without privilege. It prints why it could not load a
// chain, after the word "permission" if that is the reason.
func loadAsNobody([]string) int {
	o, err := object.Read("pass.o", bytes.NewReader(bpfprog.ELF("pass")))
	if err != nil {
		fmt.Print(err)
		return 1
	}
	p, err := o.Prepare(object.LoadOptions{}) // it has no maps
	if err == nil {
		err = syscall.Setuid(65534)
	}
	if err != nil {
		fmt.Print(err)
		return 1
	}
	m := fused.Member{Name: "pass", ProceedOn: chain.DefaultProceedOn, Program: p}
	if _, err = fused.Load([]fused.Member{m, m}); errors.Is(err, object.ErrPermission) {
		fmt.Print("permission ")
	}
	fmt.Print(err)
	return 0
}

func TestWithoutPrivilegeTheErrorSaysWhatIsMissing(t *testing.T) {
	kerneltest.NoLeaks(t)
	out, err := kerneltest.Command("load as nobody").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, w := range []string{`permission member "pass": load pass.o`, "CAP_BPF and CAP_NET_ADMIN"} {
		if !strings.Contains(string(out), w) {
			t.Errorf("%q does not say %q", out, w)
		}
	}
}

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

// detour is the member with a tail call before all else, which leads nowhere and
// so changes nothing, but that the member can't be a part of the main function.
func detour(t testing.TB, m fused.Member) fused.Member {
	t.Helper()
	nowhere, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nowhere.Close() })
	p := *m.Program
	p.Spec = p.Spec.Copy()
	p.Maps = maps.Clone(p.Maps)
	p.Maps["nowhere"] = nowhere
	code := p.Spec.Instructions
	first := asm.Mov.Reg(asm.R9, asm.R1).WithMetadata(code[0].Metadata).WithSymbol(code[0].Symbol())
	first = first.WithReference("")
	code[0] = btf.WithFuncMetadata(code[0].WithSymbol(""), nil)
	p.Spec.Instructions = append(asm.Instructions{
		first,
		asm.LoadMapPtr(asm.R2, 0).WithReference("nowhere"),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Reg(asm.R1, asm.R9),
	}, code...)
	m.Program = &p
	return m
}

// inBothForms runs a test with members that are part of the main function, where
// they can be, and with members that it calls.
func inBothForms(t *testing.T, test func(t *testing.T, form func(fused.Member) fused.Member)) {
	t.Helper()
	t.Run("inlined", func(t *testing.T) { test(t, func(m fused.Member) fused.Member { return m }) })
	t.Run("called", func(t *testing.T) { test(t, func(m fused.Member) fused.Member { return detour(t, m) }) })
}

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

// loadCounting loads a chain that counts in a map of its own.
func loadCounting(t testing.TB, members ...fused.Member) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	m, err := stats.NewMap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, err := fused.LoadCounting(members, m)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p, m
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
