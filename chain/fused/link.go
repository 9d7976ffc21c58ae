package fused

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
)

// mainName is what the generated program is called, and its main function.
const mainName = "holdfast_chain"

// Link makes one program of the members. It asks nothing of the kernel.
//
// A member that is alone and returns what the chain would is not touched: it
// runs as itself. Every program expects to be attached to the XDP hook
// (BPF_XDP), and copes with fragments if all members do.
//
// Errors: a [*LimitError] of what can't be linked.
func Link(members []Member) (*ebpf.ProgramSpec, error) {
	if len(members) == 0 {
		return nil, errNoMembers
	}
	if err := checkKinds(members); err != nil {
		return nil, err
	}
	if alone(members) {
		spec := members[0].Program.Spec.Copy()
		spec.AttachType = ebpf.AttachXDP
		bind(spec.Instructions, members[0].Program.Maps)
		return spec, nil
	}

	spec := emptySpec(members)
	spec.Instructions = mainFunction(members)
	for i, m := range members {
		spec.Instructions = append(spec.Instructions, memberFunctions(i, m)...)
	}
	return spec, nil
}

// emptySpec is the program but for its code.
func emptySpec(members []Member) *ebpf.ProgramSpec {
	first := members[0].Program.Spec
	return &ebpf.ProgramSpec{
		Name: mainName, Type: ebpf.XDP, AttachType: ebpf.AttachXDP,
		License:   license(members),
		ByteOrder: first.ByteOrder,
		Ifindex:   first.Ifindex,
		Flags:     flags(members),
	}
}

// alone tells whether the only member does all that its chain would: that
// returns XDP_PASS where it goes on past its end.
func alone(members []Member) bool {
	return len(members) == 1 && actions(members[0].ProceedOn).Without(chain.Pass) == 0
}

// actions are the set without what is no action.
func actions(s chain.Actions) chain.Actions { return s & chain.Set(chain.AllActions()...) }

// flags are those of the whole chain. What goes for one member only goes for
// none: that it copes with fragments.
func flags(members []Member) uint32 {
	f := members[0].Program.Spec.Flags
	for _, m := range members {
		frags := m.Program.Spec.Flags & unix.BPF_F_XDP_HAS_FRAGS
		f = (f | m.Program.Spec.Flags&^unix.BPF_F_XDP_HAS_FRAGS) &^ (unix.BPF_F_XDP_HAS_FRAGS &^ frags)
	}
	return f
}

// prefix keeps the names of members apart.
func prefix(i int) string { return fmt.Sprintf("m%d_", i) }

// entry is what the main function of a member is called.
func entry(i int, m Member) string { return prefix(i) + m.Program.Spec.Name }

// Symbols of the main function, which no function can have.
const endLabel = "the end"

func nextLabel(i int) string { return fmt.Sprintf("after member %d", i) }

// mainFunction calls all members.
func mainFunction(members []Member) asm.Instructions {
	return mainWith(members, context{}, make([]asm.Instructions, len(members)))
}

// mainWith calls the members, but for those whose body is given, which stands in
// place of the call.
//
// The kernel may leave any number in the upper half of what they return, so only
// the lower is looked at.
func mainWith(members []Member, c context, bodies []asm.Instructions) asm.Instructions {
	code := asm.Instructions{c.keep()}
	label := ""
	for i, m := range members {
		if i > 0 {
			code = append(code, c.give().WithSymbol(label))
		}
		label = nextLabel(i)
		on := proceed(actions(m.ProceedOn), i == len(members)-1, label)
		if bodies[i] == nil {
			code = append(code, asm.Call.Label(entry(i, m)))
		} else {
			code = append(code, bodies[i]...)
			if len(on) == 0 {
				on = asm.Instructions{asm.Ja.Label(endLabel)}
			}
			on[0] = on[0].WithSymbol(returnLabel(i))
		}
		code = append(code, on...)
	}
	// The last member said to go on.
	end := asm.Return().WithSymbol(endLabel)
	if actions(members[len(members)-1].ProceedOn).Without(chain.Pass) != 0 {
		code = append(code, asm.Mov.Imm(asm.R0, int32(chain.Pass)).WithSymbol(label))
	}
	code = append(code, end)

	code[0] = btf.WithFuncMetadata(code[0].WithSymbol(mainName), &btf.Func{
		Name:    mainName,
		Linkage: btf.GlobalFunc,
		Type:    &btf.FuncProto{Params: []btf.FuncParam{contextParam}, Return: describe(entries(members))},
	}).WithSource(asm.Comment(fmt.Sprintf("a chain of %d members", len(members))))
	return code
}

// entries are what is told of the members.
func entries(members []Member) []Entry {
	all := make([]Entry, len(members))
	for i, m := range members {
		all[i] = Entry{Name: m.Name, Priority: m.Priority, ProceedOn: m.ProceedOn}
	}
	return all
}

// proceed goes to next if the action in R0 is in the set, or falls through to
// it, and otherwise to the end.
func proceed(set chain.Actions, last bool, next string) asm.Instructions {
	var in, out []chain.Action
	for _, a := range chain.AllActions() {
		if set.Has(a) {
			in = append(in, a)
		} else {
			out = append(out, a)
		}
	}
	const action = asm.R0
	var code asm.Instructions
	switch {
	case last && set.Without(chain.Pass) == 0:
		// XDP_PASS or another action, the chain returns what the member did.
		return nil
	case len(in) == 0:
		// Never true. But the verifier takes what can't be reached at all for
		// a mistake.
		return asm.Instructions{
			asm.JEq.Imm(asm.R6, 0, next),
			asm.Ja.Label(endLabel),
		}
	case len(in) <= 3:
		for _, a := range in[1:] {
			code = append(code, asm.JEq.Imm32(action, int32(a), next))
		}
		return append(code, asm.JNE.Imm32(action, int32(in[0]), endLabel))
	default:
		code = asm.Instructions{asm.JGT.Imm32(action, int32(chain.Redirect), endLabel)}
		for _, a := range out {
			code = append(code, asm.JEq.Imm32(action, int32(a), endLabel))
		}
		return code
	}
}

// memberFunctions are the functions of a member, the first of which is its entry,
// under names of their own.
func memberFunctions(i int, m Member) asm.Instructions {
	spec := m.Program.Spec
	code := spec.Copy().Instructions
	bind(code, m.Program.Maps)

	starts := functionStarts(spec.Name, code)
	for at := range code {
		ins := withPrefix(i, code[at])
		if name, ok := starts[at]; ok {
			f := btf.FuncMetadata(&ins)
			switch {
			case at == 0:
				ins = ins.WithSymbol(entry(i, m))
				f = memberFunction(identifier(entry(i, m)), btf.GlobalFunc, contextParam)
			case f == nil:
				f = memberFunction(identifier(prefix(i)+name), btf.StaticFunc)
			default:
				named := *f
				named.Name = identifier(prefix(i) + f.Name)
				f = &named
			}
			ins = btf.WithFuncMetadata(ins, f)
			// Where there are lines each function has to begin with one.
			if ins.Source() == nil {
				ins = ins.WithSource(asm.Comment(fmt.Sprintf("%s of member %q", name, m.Name)))
			}
		}
		code[at] = ins
	}
	return code
}

// withPrefix gives the member's names in the instruction, and those that it refers
// to, their prefix.
func withPrefix(i int, ins asm.Instruction) asm.Instruction {
	if symbol := ins.Symbol(); symbol != "" {
		ins = ins.WithSymbol(prefix(i) + symbol)
	}
	jump := ins.OpCode.Class().IsJump() && !ins.IsKfuncCall()
	if ins.Reference() != "" && (jump || ins.IsLoadOfFunctionPointer() || ins.IsLoadFromMap()) {
		ins = ins.WithReference(prefix(i) + ins.Reference())
	}
	return ins
}

// functionStarts are the instructions that functions begin with, and their
// names: the first, and what is called or pointed to.
func functionStarts(main string, code asm.Instructions) map[int]string {
	called := map[string]bool{}
	for _, ins := range code {
		if ins.IsFunctionReference() {
			called[ins.Reference()] = true
		}
	}
	starts := map[int]string{0: main}
	for i, ins := range code {
		if i > 0 && ins.Symbol() != "" && called[ins.Symbol()] {
			starts[i] = ins.Symbol()
		}
	}
	return starts
}

// bind puts the maps into the instructions that load them.
func bind(code asm.Instructions, maps map[string]*ebpf.Map) {
	for i := range code {
		if m := maps[code[i].Reference()]; m != nil && code[i].IsLoadFromMap() {
			_ = code[i].AssociateMap(m) // it does load from a map
		}
	}
}

// contextParam is what a function says in BTF that takes an XDP program's
// context. The kernel knows the type by its name.
var contextParam = btf.FuncParam{Name: "ctx", Type: &btf.Pointer{Target: &btf.Struct{Name: "xdp_md", Size: 24}}}

// memberFunction is what BTF says of a function that an object says nothing of,
// or something that doesn't do: the kernel wants to know of all or none.
func memberFunction(name string, linkage btf.FuncLinkage, params ...btf.FuncParam) *btf.Func {
	return &btf.Func{
		Name: name, Linkage: linkage,
		Type: &btf.FuncProto{Params: params, Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}},
	}
}

// identifier makes a name that the kernel takes in BTF: that of a C function.
func identifier(name string) string {
	const longest = 120 // the kernel takes some more
	if len(name) > longest {
		name = name[:longest]
	}
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, name)
}
