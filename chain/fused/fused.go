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
	// Place is the member's in the map that the chain counts in, if it does.
	Place int
}

// Load links the members, see [Link], and loads the program. If the kernel refuses
// it, all members are called as functions instead of being made one. The caller
// closes the program; it holds the members' maps, but for what program arrays
// hold, see [object.Loaded.ProgramArrays].
//
// What the kernel refuses is explained: the error is that of the member's own
// Load (an [*object.Error]) where that does not load alone either, a
// [*LimitError] where the members don't fit together, and a [*RefusedError]
// where neither can be said.
func Load(members []Member) (*ebpf.Program, error) { return load(members, nil) }

// LoadCounting does the same for a chain that counts what each member returns in a
// map of [stats.NewMap], which stays the caller's. The map is one of those that a
// program can have, and the counting takes some of the stack.
func LoadCounting(members []Member, counts *ebpf.Map) (*ebpf.Program, error) {
	return load(members, counts)
}

func load(members []Member, counts *ebpf.Map) (*ebpf.Program, error) {
	if err := checkKinds(members); err != nil {
		return nil, err
	}
	// A log makes the verifier slow, and nobody reads that of a program which
	// it accepts.
	quiet := ebpf.ProgramOptions{LogDisabled: true}
	if p := newPlan(members, inlined, counts); p.inlines() && !p.alone() {
		if program, err := ebpf.NewProgramWithOptions(p.link(), quiet); err == nil {
			return program, nil
		}
	}
	p := newPlan(members, called, counts)
	spec := p.link()
	program, err := ebpf.NewProgramWithOptions(spec, quiet)
	if err != nil {
		return nil, explain(p, spec, err)
	}
	return program, nil
}

var errNoMembers = errors.New("a chain without members can't be loaded; detach the hook instead")
