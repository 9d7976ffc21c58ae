package fused

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/object"
)

// from is a member of one of this project's objects, without its maps.
func from(t testing.TB, file, program string) Member {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpfprog.ELF(file)))
	if err != nil {
		t.Fatal(err)
	}
	p := spec.Programs[program]
	if p == nil {
		t.Fatalf("%s has no program %s", file, program)
	}
	return Member{Name: program, Priority: 50, ProceedOn: chain.DefaultProceedOn, Program: &object.Prepared{Spec: p}}
}

// of is a member of that code, which it ends.
func of(name string, code ...asm.Instruction) Member {
	code = append(slices.Clone(code), asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return())
	code[0] = code[0].WithSymbol(name)
	return Member{Name: name, Priority: 50, ProceedOn: chain.DefaultProceedOn, Program: &object.Prepared{Spec: &ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Instructions: code,
	}}}
}

func link(t testing.TB, members ...Member) *ebpf.ProgramSpec {
	t.Helper()
	spec, err := Link(members)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestOneMemberAloneRunsAsItself(t *testing.T) {
	m := from(t, "member", "m0")
	m.Program.Spec.AttachType = ebpf.AttachNone
	spec := link(t, m)
	if spec.Name != "m0" || spec.AttachType != ebpf.AttachXDP || len(spec.Instructions) != len(m.Program.Spec.Instructions) {
		t.Errorf("it became %q with %d instructions", spec.Name, len(spec.Instructions))
	}
	if m.Program.Spec.AttachType != ebpf.AttachNone {
		t.Error("the member was changed")
	}
	m.ProceedOn = 0
	if spec := link(t, m); spec.Name != "m0" {
		t.Errorf("a member whose value the chain returns in any case became %q", spec.Name)
	}
	m.ProceedOn = chain.Set(chain.Drop)
	if spec := link(t, m); spec.Name != mainName {
		t.Errorf("a member after whose XDP_DROP the chain passes became %q", spec.Name)
	}
}

func TestAChainNeedsMembersThatAreForTheHook(t *testing.T) {
	if _, err := Link(nil); err == nil {
		t.Error("no members were linked")
	}
	if err := Check(nil); err == nil {
		t.Error("no members were found good")
	}
	if _, err := Link([]Member{from(t, "pass", "xdp_pass"), from(t, "socket", "socket_pass")}); err == nil || !strings.Contains(err.Error(), `"socket_pass"`) {
		t.Errorf("a program for sockets: %v", err)
	}
}

func TestGoingOnAfterPassOnlyTakesOneComparison(t *testing.T) {
	var members []Member
	for i := range 10 {
		members = append(members, of(fmt.Sprint("m", i)))
	}
	for f, each := range map[form]int{inlined: 2, called: 1} {
		// The context is kept and, but for the first, given; each runs, and
		// what each but the last returned is compared; then the end.
		main := newPlan(members, f, nil).mainFunction()
		if got := len(main); got != 1+9+10*each+9+1 {
			t.Errorf("the main function has %d instructions:\n%v", got, main)
		}
	}
}

func TestNoSetOfActionsTakesMoreThanThreeComparisons(t *testing.T) {
	for set := chain.Actions(1); set <= chain.Set(chain.AllActions()...); set++ {
		if got := len(proceed(set, "next")); got > 3 {
			t.Errorf("%q takes %d", set, got)
		}
	}
}

// proceedAfter runs the comparisons by hand: whether they go on after that
// value.
func proceedAfter(code asm.Instructions, value uint32) bool {
	for _, ins := range code {
		var jumps bool
		switch constant := uint32(ins.Constant); ins.OpCode.JumpOp() {
		case asm.JEq:
			jumps = value == constant
		case asm.JNE:
			jumps = value != constant
		case asm.JGT:
			jumps = value > constant
		default:
			panic(ins)
		}
		if jumps {
			return ins.Reference() == "next"
		}
	}
	return true
}

func TestTheChainGoesOnAfterTheActionsOfTheSetAndNoOtherNumber(t *testing.T) {
	for set := chain.Actions(1); set <= chain.Set(chain.AllActions()...); set++ {
		code := proceed(set, "next")
		for _, value := range []uint32{0, 1, 2, 3, 4, 5, 31, 32, 34, 1 << 31, 1<<32 - 1} {
			want := value <= uint32(chain.Redirect) && set.Has(chain.Action(value))
			if got := proceedAfter(code, value); got != want {
				t.Errorf("a member that goes on after %q returned %d: goes on is %v", set, value, got)
			}
		}
	}
}

// The same object may be in a chain twice, and others may have functions of the
// same names.
func TestNamesOfMembersAreKeptApart(t *testing.T) {
	members := []Member{from(t, "parts", "functions"), from(t, "parts", "looping"), from(t, "parts", "functions")}
	entries := []string{"m0_functions global", "m1_looping global", "m2_functions global"}
	others := []string{
		"holdfast_chain global",
		"m0_size_of global", "m0_thrice static", "m0_twice static",
		"m1_add static",
		"m2_size_of global", "m2_thrice static", "m2_twice static",
	}
	for f, want := range map[form][]string{inlined: others, called: append(entries, others...)} {
		spec := newPlan(members, f, nil).link()
		symbols, err := spec.Instructions.SymbolOffsets()
		if err != nil {
			t.Fatal(err)
		}
		for _, ins := range spec.Instructions {
			jump := ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() != asm.Call && ins.Reference() != ""
			if ins.IsFunctionReference() || jump {
				if _, ok := symbols[ins.Reference()]; !ok {
					t.Errorf("%v leads nowhere", ins)
				}
			}
			if ins.IsLoadFromMap() && !strings.HasPrefix(ins.Reference(), "m0_.") && !strings.HasPrefix(ins.Reference(), "m2_.") {
				t.Errorf("%v is nobody's map", ins)
			}
			if f := btf.FuncMetadata(&ins); f != nil && ins.Source() == nil {
				t.Errorf("function %s begins without a line", f.Name)
			}
		}
		got := functionsOf(spec)
		if got[0] != "holdfast_chain global" {
			t.Errorf("it begins with %s", got[0])
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("functions %q, want %q", got, want)
		}
	}
}

// functionsOf are what the kernel is told of, in their order.
func functionsOf(spec *ebpf.ProgramSpec) (functions []string) {
	for _, ins := range spec.Instructions {
		if f := btf.FuncMetadata(&ins); f != nil {
			functions = append(functions, f.Name+" "+f.Linkage.String())
		}
	}
	return functions
}

func TestWhatIsNotForOneFunctionIsCalled(t *testing.T) {
	itself := of("itself", asm.Call.Label("itself"))
	wide := of("wide", asm.StoreImm(asm.RFP, -512, 0, asm.Word))
	long := of("long", slices.Repeat(asm.Instructions{asm.Mov.Imm(asm.R1, 0)}, 20_000)...)
	for name, c := range map[string]struct {
		members []Member
		want    []bool
	}{
		"small ones":                {[]Member{of("a"), from(t, "count", "count")}, []bool{true, true}},
		"one with a tail call":      {[]Member{of("a"), from(t, "tailcall", "enter")}, []bool{true, false}},
		"one that calls itself":     {[]Member{itself, of("a")}, []bool{false, true}},
		"one with all of the stack": {[]Member{wide, of("a")}, []bool{false, true}},
		"a jump would lead too far": {[]Member{long, long, of("a")}, []bool{true, false, true}},
	} {
		if p := newPlan(c.members, inlined, nil); !slices.Equal(p.inlined, c.want) {
			t.Errorf("%s: inlined are %v, want %v", name, p.inlined, c.want)
		}
		if newPlan(c.members, called, nil).inlines() {
			t.Errorf("%s: what is to be called is not", name)
		}
	}
}

// The context is kept where no member writes.
func TestTheContextIsKeptWhereNoMemberWrites(t *testing.T) {
	uses := func(r ...asm.Register) Member {
		code := asm.Instructions{asm.StoreImm(asm.RFP, -20, 0, asm.Word)}
		for _, r := range r {
			code = append(code, asm.Mov.Imm(r, 0))
		}
		return of("m", code...)
	}
	for name, c := range map[string]struct {
		members []Member
		want    keeper
	}{
		"no register is used":   {[]Member{uses(), uses()}, keeper{register: asm.R6}},
		"some are":              {[]Member{uses(asm.R6), uses(asm.R7, asm.R9)}, keeper{register: asm.R8}},
		"all are":               {[]Member{uses(asm.R6, asm.R8), uses(asm.R7, asm.R9)}, keeper{slot: -32}},
		"by one that is called": {[]Member{uses(), of("x", asm.Mov.Imm(asm.R6, 0), asm.FnTailCall.Call())}, keeper{register: asm.R6}},
	} {
		if got := newPlan(c.members, inlined, nil).keep; got != c.want {
			t.Errorf("%s: it is kept in %+v, want %+v", name, got, c.want)
		}
	}
}

func TestWhatTheVerifierHasToKnowIsMadeForProgramsThatDoNotTell(t *testing.T) {
	callee := asm.Instructions{asm.Mov.Imm(asm.R0, 2).WithSymbol("odd.name"), asm.Return()}
	m := of("calls", asm.Call.Label("odd.name"))
	m.Program.Spec.Instructions = append(m.Program.Spec.Instructions, callee...)
	got := functionsOf(newPlan([]Member{m, of("other")}, called, nil).link())
	if want := []string{"holdfast_chain global", "m0_calls global", "m0_odd_name static", "m1_other global"}; !slices.Equal(got, want) {
		t.Errorf("functions %q, want %q", got, want)
	}
}

func TestLinkingLeavesTheMembersAsTheyAre(t *testing.T) {
	m := from(t, "parts", "functions")
	before := fmt.Sprint(m.Program.Spec.Instructions)
	one, other := fmt.Sprint(link(t, m, m).Instructions), fmt.Sprint(link(t, m, m).Instructions)
	if after := fmt.Sprint(m.Program.Spec.Instructions); before != after {
		t.Error("the member's instructions were changed")
	}
	if one != other {
		t.Error("the same members were linked in two ways")
	}
}

func TestTheLicenseIsOneThatAllMembersHave(t *testing.T) {
	for name, c := range map[string]struct {
		licenses []string
		want     string // empty for an error
	}{
		"the same":                {[]string{"Dual BSD/GPL", "Dual BSD/GPL"}, "Dual BSD/GPL"},
		"all go with the GPL":     {[]string{"Dual BSD/GPL", "GPL v2", "Dual BSD/GPL"}, "GPL"},
		"none goes with the GPL":  {[]string{"Proprietary", "Apache-2.0"}, "Proprietary"},
		"one does not, the last":  {[]string{"GPL", "Dual MIT/GPL", "Apache-2.0"}, ""},
		"one does not, the first": {[]string{"Apache-2.0", "GPL"}, ""},
		"looks as if it did":      {[]string{"GPL", "GPL-2.0"}, ""},
	} {
		var members []Member
		for i, l := range c.licenses {
			m := of(fmt.Sprint("m", i))
			m.Program.Spec.License = l
			members = append(members, m)
		}
		spec, err := Link(members)
		if c.want == "" {
			wantLimit(t, name, err, LimitLicense, members[slices.IndexFunc(members, func(m Member) bool { return !gplCompatible(m.Program.Spec.License) })].Name)
			continue
		}
		if err != nil || spec.License != c.want {
			t.Errorf("%s: %+v, %v", name, spec, err)
		}
	}
}

func TestTheFlagsAreThoseOfAll(t *testing.T) {
	const frags, bound = unix.BPF_F_XDP_HAS_FRAGS, unix.BPF_F_XDP_DEV_BOUND_ONLY
	for name, c := range map[string]struct {
		flags []uint32
		want  uint32
	}{
		"none":                       {[]uint32{0, 0}, 0},
		"all cope with fragments":    {[]uint32{frags, frags, frags}, frags},
		"the first does not":         {[]uint32{0, frags, frags}, 0},
		"the last does not":          {[]uint32{frags, frags, 0}, 0},
		"all are bound":              {[]uint32{bound, bound}, bound},
		"all are, and one copes":     {[]uint32{bound | frags, bound}, bound},
		"all are, and all of it":     {[]uint32{bound | frags, bound | frags}, bound | frags},
		"for strict alignment, once": {[]uint32{0, unix.BPF_F_STRICT_ALIGNMENT}, unix.BPF_F_STRICT_ALIGNMENT},
	} {
		var members []Member
		for i, f := range c.flags {
			m := of(fmt.Sprint("m", i))
			m.Program.Spec.Flags = f
			if f&bound != 0 {
				m.Program.Spec.Ifindex = 7
			}
			members = append(members, m)
		}
		spec := link(t, members...)
		if spec.Flags != c.want || spec.AttachType != ebpf.AttachXDP || spec.Ifindex != members[0].Program.Spec.Ifindex {
			t.Errorf("%s: flags %#x, want %#x", name, spec.Flags, c.want)
		}
	}
}

func TestANameThatTheKernelTakesIsMadeOfAny(t *testing.T) {
	for name, want := range map[string]string{
		"plain_name9": "plain_name9",
		"x.llvm.17":   "x_llvm_17",
		"é":           "_",
		"":            "",
	} {
		if got := identifier(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
	if got := identifier(strings.Repeat("x", 500)); len(got) > 127 {
		t.Errorf("a name of 500 bytes becomes one of %d", len(got))
	}
}
