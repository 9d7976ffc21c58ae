package fused

import (
	"errors"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/object"
)

// Member is a program of a chain. Members are given in the order that they run
// in, whatever their priorities.
type Member struct {
	Name      string
	Priority  uint32
	ProceedOn chain.Actions
	// Program is the member's. It is only read, and stays the caller's to
	// close. It must be one for the XDP hook, prepared without
	// [object.LoadOptions].Extend.
	Program *object.Prepared
}

// Load links the members, see [Link], and loads the program. The caller closes
// it; it holds the members' maps, but for what program arrays hold, see
// [object.Loaded.ProgramArrays].
//
// Small members are not called, as they are by what Link returns: their code
// stands in the chain's main function, where the verifier takes it there.
//
// What the kernel refuses is explained: the error is that of the member's own
// Load (an [*object.Error]) where that does not load alone either, a
// [*LimitError] where the members don't fit together, and a [*RefusedError]
// where neither can be said.
func Load(members []Member) (*ebpf.Program, error) {
	spec, err := Link(members)
	if err != nil {
		return nil, err
	}
	// What Check says, and what errors tell, is of members that are called: what
	// does not fit so is not loaded.
	if inlined := linkInline(members); inlined != nil && Check(members) == nil {
		if program, err := load(inlined); err == nil {
			return program, nil
		}
	}
	program, err := load(spec)
	if err != nil {
		return nil, explain(members, spec, err)
	}
	return program, nil
}

// load loads without a log: that makes the verifier slow, and nobody reads it of
// a program which it accepts.
func load(spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	return ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogDisabled: true})
}

var errNoMembers = errors.New("a chain without members can't be loaded; detach the hook instead")
