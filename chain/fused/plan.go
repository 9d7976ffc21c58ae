package fused

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// form is how members become one program.
type form int

const (
	// inlined makes members part of the main function, where they can be: that
	// saves them the call.
	inlined form = iota
	// called makes each member a global function. The verifier judges it for
	// itself, so this is the form of those that it can't judge together.
	called
)

// plan is a chain that is to be linked.
type plan struct {
	members []Member
	codes   []code
	inlined []bool // by member
	keep    keeper
	frame   int // how much of the stack the main function uses
	// counts is the map that the chain counts in, nil where it does not. Where it
	// does the last words of the frame are for that.
	counts *ebpf.Map
}

const word = 8

// The slots of the frame for counting: where the processor's counters are, when
// the last member ended or 0, and what the member returned meanwhile.
func (p plan) countsSlot() int16  { return int16(-p.frame) }
func (p plan) clockSlot() int16   { return int16(-p.frame + word) }
func (p plan) verdictSlot() int16 { return int16(-p.frame + 2*word) }

// countingFrame is how much those take.
const countingFrame = 3 * word

// A jump leads over at most so many instructions, either way.
const maxJump = 1<<15 - 1

func newPlan(members []Member, f form, counts *ebpf.Map) plan {
	p := plan{members: members, codes: make([]code, len(members)), inlined: make([]bool, len(members)), counts: counts}
	around, room := 16, 2*word // what is put around a member, at most, and what it must leave of the stack
	if counts != nil {
		around, room = around+32, room+countingFrame
	}
	size := around * len(members)
	used := map[asm.Register]bool{}
	for i, m := range members {
		c := analyze(m)
		p.codes[i] = c
		if f != inlined || !c.canInline(room) || size+c.entry.size > maxJump {
			continue
		}
		p.inlined[i] = true
		size += c.entry.size
		p.frame = max(p.frame, c.entry.stack)
		for r := range c.keeps {
			used[r] = true
		}
	}
	for r := asm.R6; r <= asm.R9 && p.keep.register == 0; r++ {
		if !used[r] {
			p.keep.register = r
		}
	}
	if p.keep.register == 0 {
		p.frame = roundUp(p.frame, word) + word
		p.keep.slot = int16(-p.frame)
	}
	if counts != nil {
		p.frame = roundUp(p.frame, word) + countingFrame
	}
	return p
}

// inlines tells whether any member is.
func (p plan) inlines() bool {
	for _, is := range p.inlined {
		if is {
			return true
		}
	}
	return false
}

// canInline tells whether the entry can be part of another function: if it
// does not go elsewhere by a tail call, is not called by its own functions, and
// leaves room on the stack.
func (c code) canInline(room int) bool {
	return !c.tailCalls() && !c.call(c.entry.name) && c.entry.stack <= maxStack-room
}

// keeper keeps the context while members run: in a register, if there is one that
// none of them uses, or else on the stack, below what they use there. A member
// that reaches further down than it seemed would not get by the verifier.
type keeper struct {
	register asm.Register
	slot     int16
}

func (k keeper) save() asm.Instruction {
	if k.slot != 0 {
		return asm.StoreMem(asm.RFP, k.slot, asm.R1, asm.DWord)
	}
	return asm.Mov.Reg(k.register, asm.R1)
}

func (k keeper) restore() asm.Instruction {
	if k.slot != 0 {
		return asm.LoadMem(asm.R1, asm.RFP, k.slot, asm.DWord)
	}
	return asm.Mov.Reg(asm.R1, k.register)
}
