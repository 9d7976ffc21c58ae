package fused

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"github.com/holdfast-bpf/holdfast/chain"
)

func TestASmallMemberIsNotCalled(t *testing.T) {
	deep := of("deep", asm.StoreImm(asm.RFP, -20, 0, asm.Word))
	early := of("early",
		asm.JEq.Imm(asm.R1, 0, "out"),
		asm.Mov.Imm(asm.R0, int32(chain.Drop)),
		asm.Return(),
		asm.Mov.Imm(asm.R6, 0).WithSymbol("out"),
	)
	spec := linkInline([]Member{deep, early, from(t, "parts", "functions"), deep})
	code := spec.Instructions
	symbols, err := code.SymbolOffsets()
	if err != nil {
		t.Fatal(err)
	}
	var calls, exits []string
	in := ""
	for _, ins := range code {
		if s := ins.Symbol(); s == mainName || strings.HasPrefix(s, "m2_") {
			in = s
		}
		if in != mainName {
			continue
		}
		switch {
		case ins.IsFunctionCall():
			calls = append(calls, ins.Reference())
		case ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() == asm.Exit:
			exits = append(exits, ins.Symbol())
		case ins.OpCode.Class().IsJump() && ins.Reference() != "":
			if _, ok := symbols[ins.Reference()]; !ok {
				t.Errorf("%v leads nowhere", ins)
			}
		}
	}
	if !slices.Equal(calls, []string{"m2_functions"}) || !slices.Equal(exits, []string{endLabel}) {
		t.Errorf("it calls %q, and ends at %q:\n%v", calls, exits, code)
	}
	// The context is below what any of them uses, and at a multiple of its size.
	if want := asm.StoreMem(asm.RFP, -32, asm.R1, asm.DWord); code[0].OpCode != want.OpCode || code[0].Offset != want.Offset || code[0].Src != want.Src {
		t.Errorf("it begins with %v", code[0])
	}
	if got := deep.Program.Spec.Instructions[0].Symbol(); got != "deep" {
		t.Errorf("the member was changed: %q", got)
	}
}

func TestAMemberThatOnlyPassesTakesFourInstructionsInline(t *testing.T) {
	members := []Member{of("a"), of("b"), of("c")}
	// Its own two, one for the context and one for the comparison. The first
	// has its context, which is kept, and the last only goes to the end.
	if got := len(linkInline(members).Instructions); got != 3*4+1 {
		t.Errorf("the chain has %d instructions:\n%v", got, linkInline(members).Instructions)
	}
}

func TestWhatCanNotStandInTheMainFunctionIsCalled(t *testing.T) {
	nop := asm.Mov.Imm(asm.R1, 0)
	for name, m := range map[string]Member{
		"functions of its own":    from(t, "parts", "functions"),
		"a tail call":             of("m", asm.FnTailCall.Call()),
		"a loop":                  of("m", nop, asm.Instruction{OpCode: asm.JNE.Imm(asm.R1, 5, "").OpCode, Dst: asm.R1, Offset: -2, Constant: 5}),
		"a loop with a name":      of("m", nop, nop.WithSymbol("again"), asm.JNE.Imm(asm.R1, 5, "again")),
		"too many instructions":   of("m", slices.Repeat([]asm.Instruction{nop}, maxInlined)...),
		"all of the stack":        of("m", asm.StoreImm(asm.RFP, -maxStack, 0, asm.Word)),
		"a jump of another width": of("m", asm.Instruction{OpCode: asm.OpCode(asm.Jump32Class).SetJumpOp(asm.Ja), Constant: 0}),
	} {
		if analyze(m).inlinable() {
			t.Errorf("a member with %s is not called", name)
		}
		if spec := linkInline([]Member{m, m}); spec != nil {
			t.Errorf("members with %s became %v", name, spec.Instructions)
		}
	}
	never := of("never")
	never.ProceedOn = 0
	if spec := linkInline([]Member{never, of("m")}); spec != nil {
		t.Errorf("behind a member that never goes on: %v", spec.Instructions)
	}
	if spec := linkInline([]Member{of("m")}); spec != nil {
		t.Errorf("a member alone became %v", spec.Instructions)
	}
}
