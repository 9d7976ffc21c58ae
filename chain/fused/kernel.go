package fused

import (
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/holdfast-bpf/holdfast/chain"
)

// thisKernel asks the kernel by loading small programs.
var thisKernel = facts{
	mapID: func(m *ebpf.Map) uint32 {
		info, err := m.Info()
		if err != nil {
			return 0
		}
		id, _ := info.ID()
		return uint32(id)
	},
	frame:     frame,
	calls:     tryCalls,
	tailCalls: sync.OnceValue(tryTailCalls),
}

// frame is what a function takes of the stack, as the kernel counts it.
func frame(stack int) int {
	if compiled() {
		return compiledFrame(stack)
	}
	return interpretedFrame(stack)
}

// compiledFrame is the frame of compiled programs since Linux 6.8.
func compiledFrame(stack int) int { return roundUp(stack, 16) }

// interpretedFrame is that of others: the interpreter has no smaller ones.
func interpretedFrame(stack int) int { return roundUp(max(stack, 1), 32) }

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// compiled tells how the kernel counts, from whether a main function that uses no
// stack can call one that uses all.
var compiled = sync.OnceValue(func() bool {
	return loads(callingProgram(btf.GlobalFunc, []asm.Instruction{asm.StoreImm(asm.RFP, -maxStack, 0, asm.Word)}))
})

// tryTailCalls tells whether functions that are called can make tail calls. Where
// that can't be found out they can.
func tryTailCalls() bool {
	array, err := ebpf.NewMap(&ebpf.MapSpec{Name: "try", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return true
	}
	defer array.Close()
	jump := []asm.Instruction{
		asm.LoadMapPtr(asm.R2, array.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
	}
	return loads(callingProgram(btf.GlobalFunc, jump)) || !loads(callingProgram(btf.GlobalFunc, nil))
}

// tryCalls tries to call a function that calls another, and so on.
func tryCalls(depth int, first btf.FuncLinkage) bool {
	return loads(callingProgram(first, make([][]asm.Instruction, depth)...))
}

// callingProgram calls a function, which calls the next, and so on. Each does what
// is given.
func callingProgram(linkage btf.FuncLinkage, functions ...[]asm.Instruction) asm.Instructions {
	name := func(i int) string { return fmt.Sprint("called", i) }
	code := asm.Instructions{
		btf.WithFuncMetadata(asm.Call.Label(name(0)).WithSymbol("main"), memberFunction("main", btf.GlobalFunc, contextParam)),
		asm.Return(),
	}
	for i, f := range functions {
		begin := len(code)
		code = append(code, f...)
		if i < len(functions)-1 {
			code = append(code, asm.Call.Label(name(i+1)))
		}
		code = append(code, asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return())
		code[begin] = btf.WithFuncMetadata(code[begin].WithSymbol(name(i)), memberFunction(name(i), linkage, contextParam))
		linkage = btf.StaticFunc
	}
	return code
}

func loads(code asm.Instructions) bool {
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "try", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Instructions: code,
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return false
	}
	p.Close()
	return true
}
