package features

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// The programs that try things are so small that they are written here, in
// instructions, and need no compiler.

const (
	actionDrop = 1
	actionPass = 2
)

// passSpec is a program that passes every packet.
func passSpec(flags uint32) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: "holdfast_probe", Type: ebpf.XDP, AttachType: ebpf.AttachXDP,
		License: "Dual BSD/GPL", Flags: flags,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, actionPass), asm.Return()},
	}
}

func loadPass() (*ebpf.Program, error) { return ebpf.NewProgram(passSpec(0)) }

// loadFrags loads one that copes with packets in several buffers.
func loadFrags() (*ebpf.Program, error) { return ebpf.NewProgram(passSpec(unix.BPF_F_XDP_HAS_FRAGS)) }

// loadBound loads one for the interface of that index in the calling thread's
// network namespace. The driver is not told of it.
func loadBound(index int) (*ebpf.Program, error) {
	spec := passSpec(unix.BPF_F_XDP_DEV_BOUND_ONLY)
	spec.Ifindex = uint32(index)
	return ebpf.NewProgram(spec)
}

// loadOffloaded loads one that runs on the card of that interface, which
// involves the driver.
func loadOffloaded(index int) (*ebpf.Program, error) {
	spec := passSpec(0)
	spec.Ifindex = uint32(index)
	return ebpf.NewProgram(spec)
}

// slot is the function of the dispatcher that an extension replaces.
const slot = "slot"

// function is the BTF of "int name(struct xdp_md *ctx)". The kernel compares
// it between an extension and the function that it replaces, and knows the
// context by the name of its type.
func function(name string) *btf.Func {
	return &btf.Func{
		Name:    name,
		Linkage: btf.GlobalFunc,
		Type: &btf.FuncProto{
			Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
			Params: []btf.FuncParam{{
				Name: "ctx",
				Type: &btf.Pointer{Target: &btf.Struct{Name: "xdp_md", Size: 24}},
			}},
		},
	}
}

// loadDispatcher loads a program that returns what its slot returns, which is
// XDP_PASS as long as no extension replaces it.
func loadDispatcher() (*ebpf.Program, error) {
	spec := passSpec(0)
	spec.Name = "holdfast_disp"
	spec.Instructions = asm.Instructions{
		btf.WithFuncMetadata(asm.Call.Label(slot).WithSymbol("dispatcher"), function("dispatcher")),
		asm.Return(),
		btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, actionPass).WithSymbol(slot), function(slot)),
		asm.Return(),
	}
	return ebpf.NewProgram(spec)
}

// loadExtension loads a replacement for the dispatcher's slot, that returns
// XDP_DROP.
func loadExtension(dispatcher *ebpf.Program) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "holdfast_ext", Type: ebpf.Extension, License: "Dual BSD/GPL",
		AttachTarget: dispatcher, AttachTo: slot,
		Instructions: asm.Instructions{
			btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, actionDrop).WithSymbol("extension"), function("extension")),
			asm.Return(),
		},
	})
}

// endLink detaches at once, and leaves nothing to wait for: after a mere Close
// the kernel takes some milliseconds to detach.
func endLink(l *xdp.Link) error {
	err := l.Detach()
	if closeErr := l.Close(); err == nil {
		err = closeErr
	}
	return err
}
