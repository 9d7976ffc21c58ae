package fused

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// code is what is known of a member's code without running it.
type code struct {
	member Member
	size   int // in instructions, as the kernel counts them
	// maps are the names of those that it uses.
	maps map[string]bool
	// functions by name; the member's own is the first.
	functions map[string]*function
	entry     *function
	// keeps are the registers that it uses of those which a call keeps.
	keeps map[asm.Register]bool
}

type function struct {
	name     string
	size     int
	stack    int // how far it writes or points below its frame, in bytes
	tailCall bool
	calls    []string // also what is called by helpers on its behalf
}

func analyze(m Member) code {
	instructions := m.Program.Spec.Instructions
	starts := functionStarts(m.Program.Spec.Name, instructions)
	c := code{
		member: m, size: int(instructions.Size() / asm.InstructionSize),
		maps: map[string]bool{}, functions: map[string]*function{}, keeps: map[asm.Register]bool{},
	}
	var f *function
	var frame frameTracker
	for i, ins := range instructions {
		if name, ok := starts[i]; ok {
			f = &function{name: name}
			c.functions[name] = f
			if i == 0 {
				c.entry = f
			}
			frame = frameTracker{}
		}
		f.size += int(ins.Width())
		f.stack = max(f.stack, frame.step(ins))
		if f == c.entry {
			c.keeps[ins.Dst], c.keeps[ins.Src] = true, true
		}
		switch {
		case ins.IsLoadFromMap():
			c.maps[ins.Reference()] = true
		case ins.IsFunctionCall(), ins.IsLoadOfFunctionPointer() && !setsTimer(instructions[i:]):
			f.calls = append(f.calls, ins.Reference())
		case ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnTailCall:
			f.tailCall = true
		}
	}
	return c
}

// setsTimer tells whether the function that is pointed to is for a timer, which
// runs it later, on a stack of its own.
func setsTimer(code asm.Instructions) bool {
	for _, ins := range code {
		if ins.IsBuiltinCall() {
			return asm.BuiltinFunc(ins.Constant) == asm.FnTimerSetCallback
		}
	}
	return false
}

func (c code) tailCalls() bool {
	for _, f := range c.functions {
		if f.tailCall {
			return true
		}
	}
	return false
}

// call tells whether one of the functions calls the one of that name.
func (c code) call(name string) bool {
	for _, f := range c.functions {
		if slices.Contains(f.calls, name) {
			return true
		}
	}
	return false
}

// sureDepth is how deep every kernel lets functions call each other below a main
// function.
const sureDepth = 7

// checkCalls follows the calls from the chain's main function down, as the
// verifier does. That one has a frame of so many bytes.
func (c code) checkCalls(main int, inlined bool, kernel facts) error {
	// level has the functions that are called at one depth, with what those
	// above use at most.
	level := map[*function]int{}
	first := btf.GlobalFunc
	if inlined {
		first = btf.StaticFunc
		c.descend(level, c.entry, main)
	} else {
		level[c.entry] = main
	}
	for depth := 1; len(level) > 0; depth++ {
		if depth > sureDepth && !kernel.calls(depth, first) {
			return &LimitError{
				Limit: LimitCalls, Member: c.member.Name, Hint: hintElsewhere,
				Detail: fmt.Sprintf("its functions call each other %d deep, and below the chain's own this kernel allows %d", depth, depth-1),
			}
		}
		next := map[*function]int{}
		for f, above := range level {
			if f.tailCall && above >= maxTailStack {
				return &LimitError{
					Limit: LimitStack, Member: c.member.Name, Hint: hintElsewhere,
					Detail: fmt.Sprintf("its function %s makes a tail call, and those that call it have %d bytes of stack where less than %d are allowed", f.name, above, maxTailStack),
				}
			}
			below := above + kernel.frame(f.stack)
			if below > maxStack {
				return &LimitError{
					Limit: LimitStack, Member: c.member.Name, Hint: hintElsewhere,
					Detail: fmt.Sprintf("with its function %s the stack has %d bytes, %d of them the chain's, and a program can have %d", f.name, below, main, maxStack),
				}
			}
			c.descend(next, f, below)
		}
		level = next
	}
	return nil
}

// descend adds what the function calls, below so much of the stack.
func (c code) descend(level map[*function]int, f *function, above int) {
	for _, name := range f.calls {
		if called := c.functions[name]; called != nil {
			level[called] = max(level[called], above)
		}
	}
}

// frameTracker follows which registers point into the frame of a function.
type frameTracker struct {
	known  [asm.R9 + 1]bool
	offset [asm.R9 + 1]int64
}

// step takes one instruction and returns how far below the frame's end it
// reaches.
func (t *frameTracker) step(ins asm.Instruction) (depth int) {
	at := func(r asm.Register) (int64, bool) {
		if r == asm.RFP {
			return 0, true
		}
		if int(r) < len(t.known) {
			return t.offset[r], t.known[r]
		}
		return 0, false
	}
	reach := func(offset int64, ok bool) {
		if ok && offset < 0 {
			depth = max(depth, int(min(-offset, 1<<16)))
		}
	}
	forget := func(r asm.Register) {
		if int(r) < len(t.known) {
			t.known[r] = false
		}
	}
	class := ins.OpCode.Class()
	switch {
	case class.IsStore():
		offset, ok := at(ins.Dst)
		reach(offset+int64(ins.Offset), ok)
	case class.IsLoad():
		if class == asm.LdXClass {
			offset, ok := at(ins.Src)
			reach(offset+int64(ins.Offset), ok)
		}
		forget(ins.Dst)
	case class.IsALU():
		offset, ok := at(ins.Dst)
		immediate := ins.OpCode.Source() == asm.ImmSource
		switch op := ins.OpCode.ALUOp(); {
		case class != asm.ALU64Class:
			ok = false
		case op == asm.Mov && !immediate:
			offset, ok = at(ins.Src)
		case op == asm.Add && immediate:
			offset += ins.Constant
		case op == asm.Sub && immediate:
			offset -= ins.Constant
		default:
			ok = false
		}
		if int(ins.Dst) < len(t.known) {
			t.known[ins.Dst], t.offset[ins.Dst] = ok, offset
		}
		reach(offset, ok)
	case ins.OpCode.JumpOp() == asm.Call:
		for r := asm.R0; r <= asm.R5; r++ {
			forget(r)
		}
	}
	return depth
}
