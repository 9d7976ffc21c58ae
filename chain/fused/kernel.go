package fused

import (
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/holdfast-bpf/holdfast/chain"
)

// thisKernel asks the kernel by loading small programs, each at most once.
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
	if loads(callingFunction(asm.StoreImm(asm.RFP, -maxStack, 0, asm.DWord))) {
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
	return loads(callingFunction(
		asm.LoadMapPtr(asm.R2, array.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
	)) || !loads(callingFunction())
}

// callingFunction is a program that calls a function which does that.
func callingFunction(what ...asm.Instruction) asm.Instructions {
	const name = "called"
	code := asm.Instructions{asm.Call.Label(name), asm.Return()}
	code = append(code, append(what, asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return())...)
	code[2] = code[2].WithSymbol(name)
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
