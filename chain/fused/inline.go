package fused

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// A call is not much, but where the processor has to be kept from guessing where
// it returns to (a mitigation that Linux calls return thunk) it is more than a
// small member's own work. So small members are not called: their code stands in
// the chain's main function. They share its frame, and no register is kept for
// the chain beside them: that keeps its context in the frame, below what members
// use.
//
// The verifier follows the paths through that code one after the other, and not
// each member by itself. That it does not follow the same again and again is
// because nothing of a member counts in the next one: all registers are written
// anew, and so is the frame.

// maxInlined is how many instructions a member has at most that is not called:
// in more of them a call is nothing.
const maxInlined = 256

// contextSize is what the context takes in the frame.
const contextSize = 8

// inlinable tells whether the member's code can stand in another function: it
// has no functions of its own, makes no tail call, which would not come back, and
// has no loop.
func (c code) inlinable() bool {
	if len(c.functions) != 1 || c.entry.tailCall || c.size > maxInlined || c.entry.stack > maxStack-contextSize {
		return false
	}
	symbols := map[string]bool{}
	for _, ins := range c.member.Program.Spec.Instructions {
		if ins.Symbol() != "" {
			symbols[ins.Symbol()] = true
		}
		if !isJump(ins) {
			continue
		}
		back := ins.Offset < 0
		if ins.Reference() != "" {
			back = symbols[ins.Reference()]
		}
		// A jump of 32 bits has its distance elsewhere.
		if back || ins.OpCode.Class() == asm.Jump32Class && ins.OpCode.JumpOp() == asm.Ja {
			return false
		}
	}
	return true
}

// isJump tells whether the instruction goes on elsewhere in its function.
func isJump(ins asm.Instruction) bool {
	return ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() != asm.Call && ins.OpCode.JumpOp() != asm.Exit
}

// inline tells which members are not called.
func inline(members []Member) []bool {
	in := make([]bool, len(members))
	for i, m := range members {
		in[i] = analyze(m).inlinable()
		if i < len(members)-1 && actions(m.ProceedOn) == 0 {
			// What never goes on compares the context, which no register has.
			return make([]bool, len(members))
		}
	}
	return in
}

// linkInline is Link, but for small members, which it does not call. It returns
// nil where all are called.
func linkInline(members []Member) *ebpf.ProgramSpec {
	if alone(members) {
		return nil
	}
	in := inline(members)
	frame, any := 0, false
	for i, m := range members {
		if in[i] {
			frame, any = max(frame, analyze(m).entry.stack), true
		}
	}
	if !any {
		return nil
	}
	spec := emptySpec(members)
	c := context{slot: -int16((frame+contextSize-1)/contextSize*contextSize + contextSize)}
	bodies := make([]asm.Instructions, len(members))
	for i, m := range members {
		if in[i] {
			bodies[i] = memberBody(i, m)
		}
	}
	spec.Instructions = mainWith(members, c, bodies)
	for i, m := range members {
		if !in[i] {
			spec.Instructions = append(spec.Instructions, memberFunctions(i, m)...)
		}
	}
	return spec
}

// context is where the chain's main function has its context: in R6, or in the
// frame where members use all registers.
type context struct{ slot int16 }

func (c context) keep() asm.Instruction {
	if c.slot == 0 {
		return asm.Mov.Reg(asm.R6, asm.R1)
	}
	return asm.StoreMem(asm.RFP, c.slot, asm.R1, asm.DWord)
}

func (c context) give() asm.Instruction {
	if c.slot == 0 {
		return asm.Mov.Reg(asm.R1, asm.R6)
	}
	return asm.LoadMem(asm.R1, asm.RFP, c.slot, asm.DWord)
}

// memberBody is the code of a member, which goes to returnLabel where it returned.
func memberBody(i int, m Member) asm.Instructions {
	code := m.Program.Spec.Copy().Instructions
	bind(code, m.Program.Maps)
	for at := range code {
		ins := withPrefix(i, code[at])
		if ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() == asm.Exit {
			jump := asm.Ja.Label("")
			ins.OpCode, ins.Offset = jump.OpCode, jump.Offset
			ins = ins.WithReference(returnLabel(i))
		}
		code[at] = ins
	}
	code[0] = btf.WithFuncMetadata(code[0].WithSymbol(""), nil)
	return code
}

func returnLabel(i int) string { return fmt.Sprintf("member %d returned", i) }
