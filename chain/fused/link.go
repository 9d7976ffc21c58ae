package fused

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/stats"
)

// mainName is what the generated program is called, and its main function.
const mainName = "holdfast_chain"

// Link makes one program of the members, of the form that Load tries first. It
// asks nothing of the kernel.
//
// A member that is alone and returns what the chain would is not touched: it
// runs as itself. Every program expects to be attached to the XDP hook
// (BPF_XDP), and copes with fragments if all members do.
//
// Errors: a [*LimitError] of what can't be linked.
func Link(members []Member) (*ebpf.ProgramSpec, error) {
	if err := checkKinds(members); err != nil {
		return nil, err
	}
	return newPlan(members, inlined, nil).link(), nil
}

// link makes the program.
func (p plan) link() *ebpf.ProgramSpec {
	members := p.members
	first := members[0].Program.Spec
	if p.alone() {
		spec := first.Copy()
		spec.AttachType = ebpf.AttachXDP
		bind(spec.Instructions, members[0].Program.Maps)
		return spec
	}

	spec := &ebpf.ProgramSpec{
		Name: mainName, Type: ebpf.XDP, AttachType: ebpf.AttachXDP,
		License:   license(members),
		ByteOrder: first.ByteOrder,
		Ifindex:   first.Ifindex,
		Flags:     flags(members),
	}
	spec.Instructions = p.mainFunction()
	for i := range members {
		main, others := p.functions(i)
		if !p.inlined[i] {
			others = append(main, others...)
		}
		spec.Instructions = append(spec.Instructions, others...)
	}
	return spec
}

// alone tells whether the only member does all that its chain would: that
// returns XDP_PASS where it goes on past its end, and counts if it is to.
func (p plan) alone() bool {
	return p.counts == nil && len(p.members) == 1 && actions(p.members[0].ProceedOn).Without(chain.Pass) == 0
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

func returnLabel(i int) string { return fmt.Sprintf("return of member %d", i) }
func nextLabel(i int) string   { return fmt.Sprintf("after member %d", i) }

// mainFunction runs the members. The kernel may leave any number in the upper
// half of what they return, so only the lower is looked at.
func (p plan) mainFunction() asm.Instructions {
	code := append(asm.Instructions{p.keep.save()}, p.beginCounting()...)
	for i, m := range p.members {
		after := p.counting(i, p.after(i))
		run := asm.Instructions{asm.Call.Label(entry(i, m))}
		if p.inlined[i] {
			label := endLabel
			if len(after) > 0 {
				label = returnLabel(i)
				after[0] = after[0].WithSymbol(label)
			}
			body, _ := p.functions(i)
			run = returnTo(label, body)
		}
		if i > 0 {
			code = append(code, p.keep.restore().WithSymbol(nextLabel(i-1)))
		}
		code = append(append(code, run...), after...)
	}
	code = append(code, asm.Return().WithSymbol(endLabel))

	code[0] = btf.WithFuncMetadata(code[0].WithSymbol(mainName), &btf.Func{
		Name:    mainName,
		Linkage: btf.GlobalFunc,
		Type:    &btf.FuncProto{Params: []btf.FuncParam{contextParam}, Return: describe(entries(p.members))},
	}).WithSource(asm.Comment(fmt.Sprintf("a chain of %d members", len(p.members))))
	return code
}

// Symbols of what counts.
const untimedLabel = "not timed"

func boundedLabel(i int) string { return fmt.Sprintf("verdict of member %d", i) }
func countedLabel(i int) string { return fmt.Sprintf("counted member %d", i) }

// beginCounting counts the packet, and looks at the clock for one of some. Nothing
// of it where the chain does not count.
func (p plan) beginCounting() asm.Instructions {
	if p.counts == nil {
		return nil
	}
	return asm.Instructions{
		asm.Mov.Imm(asm.R2, 0),
		asm.StoreMem(asm.RFP, p.clockSlot(), asm.R2, asm.DWord), // it is the key as well
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(p.clockSlot())),
		asm.LoadMapPtr(asm.R1, p.counts.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, endLabel), // never: an array has its elements
		asm.StoreMem(asm.RFP, p.countsSlot(), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, stats.Packets, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R0, stats.Packets, asm.R2, asm.DWord),
		asm.And.Imm(asm.R1, stats.Sample-1),
		asm.JNE.Imm(asm.R1, 0, untimedLabel),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, p.clockSlot(), asm.R0, asm.DWord),
		p.keep.restore().WithSymbol(untimedLabel),
	}
}

// counting counts what a member returned, which is in R0 and stays there, before
// what comes after it.
func (p plan) counting(i int, after asm.Instructions) asm.Instructions {
	if p.counts == nil {
		return after
	}
	counted := endLabel
	if len(after) > 0 {
		counted = countedLabel(i)
		after[0] = after[0].WithSymbol(counted)
	}
	at := int16(stats.Begin + p.members[i].Place*stats.Size)
	code := asm.Instructions{
		asm.LoadMem(asm.R1, asm.RFP, p.countsSlot(), asm.DWord),
		asm.Mov.Reg32(asm.R2, asm.R0),
		asm.JLE.Imm(asm.R2, int32(chain.Redirect), boundedLabel(i)),
		asm.Mov.Imm(asm.R2, int32(stats.Other)),
		asm.LSh.Imm(asm.R2, 3).WithSymbol(boundedLabel(i)),
		asm.Add.Reg(asm.R1, asm.R2),
	}
	code = append(code, add(asm.R1, at, asm.Mov.Imm(asm.R3, 1))...)
	code = append(code,
		asm.LoadMem(asm.R1, asm.RFP, p.clockSlot(), asm.DWord),
		asm.JEq.Imm(asm.R1, 0, counted),
		asm.StoreMem(asm.RFP, p.verdictSlot(), asm.R0, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R4, asm.RFP, p.clockSlot(), asm.DWord),
		asm.StoreMem(asm.RFP, p.clockSlot(), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, p.countsSlot(), asm.DWord),
	)
	code = append(code, add(asm.R1, at+stats.Timed, asm.Mov.Imm(asm.R3, 1))...)
	code = append(code, add(asm.R1, at+stats.Time, asm.Mov.Reg(asm.R3, asm.R0), asm.Sub.Reg(asm.R3, asm.R4))...)
	code = append(code, asm.LoadMem(asm.R0, asm.RFP, p.verdictSlot(), asm.DWord))
	return append(code, after...)
}

// add adds what these instructions put into R3 to a counter.
func add(base asm.Register, at int16, amount ...asm.Instruction) asm.Instructions {
	return append(amount,
		asm.LoadMem(asm.R2, base, at, asm.DWord),
		asm.Add.Reg(asm.R2, asm.R3),
		asm.StoreMem(base, at, asm.R2, asm.DWord),
	)
}

// entries are what is told of the members.
func entries(members []Member) []Entry {
	all := make([]Entry, len(members))
	for i, m := range members {
		all[i] = Entry{Name: m.Name, Priority: m.Priority, ProceedOn: m.ProceedOn}
	}
	return all
}

// after is what follows a member: it goes on to the next one, or falls through to
// it, if the action in R0 is one that the member proceeds on, and otherwise to the
// end. After the last member the chain has run to its end.
func (p plan) after(i int) asm.Instructions {
	set, next := actions(p.members[i].ProceedOn), nextLabel(i)
	if i < len(p.members)-1 {
		if set == 0 {
			// Never true. But the verifier takes what can't be reached at all
			// for a mistake.
			return asm.Instructions{p.keep.restore(), asm.JEq.Imm(asm.R1, 0, next), asm.Ja.Label(endLabel)}
		}
		return proceed(set, next)
	}
	if set.Without(chain.Pass) == 0 {
		return nil // XDP_PASS or another action, the chain returns what the member did.
	}
	return append(proceed(set, next), asm.Mov.Imm(asm.R0, int32(chain.Pass)).WithSymbol(next))
}

// proceed goes to next if the action in R0 is in the set, which is not empty, or
// falls through to it, and otherwise to the end.
func proceed(set chain.Actions, next string) asm.Instructions {
	var in, out []chain.Action
	for _, a := range chain.AllActions() {
		if set.Has(a) {
			in = append(in, a)
		} else {
			out = append(out, a)
		}
	}
	var code asm.Instructions
	if len(in) <= 3 {
		for _, a := range in[1:] {
			code = append(code, asm.JEq.Imm32(asm.R0, int32(a), next))
		}
		return append(code, asm.JNE.Imm32(asm.R0, int32(in[0]), endLabel))
	}
	code = append(code, asm.JGT.Imm32(asm.R0, int32(chain.Redirect), endLabel))
	for _, a := range out {
		code = append(code, asm.JEq.Imm32(asm.R0, int32(a), endLabel))
	}
	return code
}

// returnTo makes of a function's code a part of another's: where it returned, it
// goes to the label.
func returnTo(label string, function asm.Instructions) asm.Instructions {
	code := slices.Clone(function)
	for i, ins := range code {
		if ins.OpCode.JumpOp() == asm.Exit {
			code[i] = asm.Ja.Label("").WithMetadata(ins.Metadata).WithReference(label)
		}
	}
	code[0] = btf.WithFuncMetadata(code[0].WithSymbol(""), nil)
	return code
}

// functions are those of a member, its entry and the others, under names of their
// own.
func (p plan) functions(i int) (main, others asm.Instructions) {
	m := p.members[i]
	code := m.Program.Spec.Copy().Instructions
	bind(code, m.Program.Maps)

	starts := functionStarts(m.Program.Spec.Name, code)
	end := len(code)
	for at := range code {
		ins := code[at]
		if symbol := ins.Symbol(); symbol != "" {
			ins = ins.WithSymbol(prefix(i) + symbol)
		}
		jump := ins.OpCode.Class().IsJump() && !ins.IsKfuncCall()
		if ins.Reference() != "" && (jump || ins.IsLoadOfFunctionPointer() || ins.IsLoadFromMap()) {
			ins = ins.WithReference(prefix(i) + ins.Reference())
		}
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
			if at > 0 {
				end = min(end, at)
			}
		}
		code[at] = ins
	}
	return code[:end:end], code[end:]
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
