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
	stack:     sync.OnceValues(tryStack),
	calls:     tryCalls,
	tailCalls: sync.OnceValue(tryTailCalls),
}

// What a frame takes at least, and what it is rounded up to: for the interpreter,
// and for compiled programs since Linux 6.8, where one without any takes none.
const (
	interpretedFrame = 32
	compiledFrame    = 16
)

// tryStack tells what the main function and every other takes, from whether a
// function with all the stack there is can be called.
func tryStack() (main, round int) {
	if loads(callingProgram([]asm.Instruction{asm.StoreImm(asm.RFP, -maxStack, 0, asm.Word)})) {
		return 0, compiledFrame
	}
	return interpretedFrame, interpretedFrame
}

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
	return loads(callingProgram(jump)) || !loads(callingProgram(nil))
}

// tryCalls tries to call a function that calls another, and so on.
func tryCalls(depth int) bool {
	return loads(callingProgram(make([][]asm.Instruction, depth)...))
}

// callingProgram calls a global function, as a chain does its members,
// which calls the next, and so on. Each does what is given.
func callingProgram(functions ...[]asm.Instruction) asm.Instructions {
	name := func(i int) string { return fmt.Sprint("called", i) }
	code := asm.Instructions{
		btf.WithFuncMetadata(asm.Call.Label(name(0)).WithSymbol("main"), memberFunction("main", btf.GlobalFunc, contextParam)),
		asm.Return(),
	}
	for i, f := range functions {
		linkage := btf.StaticFunc
		if i == 0 {
			linkage = btf.GlobalFunc
		}
		begin := len(code)
		code = append(code, f...)
		if i < len(functions)-1 {
			code = append(code, asm.Call.Label(name(i+1)))
		}
		code = append(code, asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return())
		code[begin] = btf.WithFuncMetadata(code[begin].WithSymbol(name(i)), memberFunction(name(i), linkage, contextParam))
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
