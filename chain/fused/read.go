package fused

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

// ErrNotFused says that a program is none that was linked of members. One that is
// alone in its chain runs as itself, and is none either.
var ErrNotFused = errors.New("not a program that Holdfast linked of members")

// Read tells the members of a chain, in the order that they run in, from its
// program in the kernel. That needs CAP_SYS_ADMIN. It is an [ErrNotFused] if the
// program is another's, and an [fs.ErrNotExist] if there is none of that id.
func Read(programID uint32) ([]Entry, error) {
	fail := func(err error) ([]Entry, error) {
		return nil, fmt.Errorf("read the members of program %d: %w", programID, err)
	}
	fd, err := kernel.ProgramByID(programID)
	if err != nil {
		return fail(err)
	}
	defer fd.Close()
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		return fail(err)
	}
	if info.Name != mainName || info.BTFID == 0 {
		return fail(ErrNotFused)
	}
	handle, err := btf.NewHandleFromID(btf.ID(info.BTFID))
	if err != nil {
		return fail(err)
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return fail(err)
	}
	main, err := types.TypeByID(btf.TypeID(info.Function))
	if err != nil {
		return fail(err)
	}
	f, ok := main.(*btf.Func)
	if !ok {
		return fail(ErrNotFused)
	}
	proto, ok := f.Type.(*btf.FuncProto)
	if !ok {
		return fail(ErrNotFused)
	}
	entries, err := parseDescription(proto.Return)
	if err != nil {
		return fail(err)
	}
	return entries, nil
}
