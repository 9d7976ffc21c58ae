package fused

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Limit is what one program can have no more of than it has, however many
// members it is made of.
type Limit string

const (
	// LimitMaps: a program uses at most 64 maps. One that several members
	// share counts once.
	LimitMaps Limit = "maps"
	// LimitInstructions: a program has at most a million instructions, and the
	// verifier follows at most as many through all branches and loops. Only the
	// first is known before it is loaded.
	LimitInstructions Limit = "instructions"
	// LimitFunctions: a program has at most 256 functions, one of them the
	// chain's.
	LimitFunctions Limit = "functions"
	// LimitStack: functions that call each other have 512 bytes of stack, the
	// chain's own among them. It has at least 32 before Linux 6.8, or without
	// JIT. What calls a function with a tail call may have 256.
	LimitStack Limit = "stack"
	// LimitCalls: at most 8 functions can be under way at once, one of them the
	// chain's. Linux 7.3 allows 16.
	LimitCalls Limit = "calls"
	// LimitLicense: a program has one license, and the kernel keeps some
	// functions for those that are compatible with the GPL. Members whose
	// license is don't go together with members whose license is not.
	LimitLicense Limit = "license"
	// LimitKconfig: one member can ask for values of the kernel's configuration
	// (extern variables in .kconfig).
	LimitKconfig Limit = "kconfig"
	// LimitDevice: all members are bound to the same device, or none is.
	LimitDevice Limit = "device"
	// LimitTailCalls: where programs are not compiled (JIT), or on some
	// architectures, a program with several functions can make no tail calls.
	LimitTailCalls Limit = "tail calls"
	// LimitPrograms: what a map holds that holds programs, and whoever uses it,
	// copes with fragments, or nothing of it does. A chain copes with them if
	// all members do. Only the kernel knows, when the chain is loaded.
	LimitPrograms Limit = "maps of programs"
	// LimitExceptions: an exception (bpf_throw) would end the whole chain, and
	// not the member.
	LimitExceptions Limit = "exceptions"
)

// ErrLimit says that members do not fit into one program.
var ErrLimit = errors.New("the members don't fit into one program")

// LimitError says which limit keeps members from being one program, and why. It
// is an [ErrLimit].
type LimitError struct {
	Limit Limit
	// Member is the name of the one that does it: that is in the way of others,
	// or has the most of what all have too much of. It is empty where that
	// can't be told.
	Member string
	Detail string
	Hint   string

	cause error
}

func (e *LimitError) Error() string {
	member := ""
	if e.Member != "" {
		member = fmt.Sprintf("member %q: ", e.Member)
	}
	return fmt.Sprintf("%s%s: %s; %s", member, ErrLimit, e.Detail, e.Hint)
}

// Unwrap gives ErrLimit, and the kernel's answer if it was that.
func (e *LimitError) Unwrap() []error {
	if e.cause == nil {
		return []error{ErrLimit}
	}
	return []error{ErrLimit, e.cause}
}

const hintElsewhere = "leave it out, or choose the live engine, where each member is a program of its own"

// Check tells whether the members would fit into one program, as far as that can
// be told without loading it. The first limit that they don't keep is the error,
// a [*LimitError]. Code is counted whether or not it can be reached.
//
// Where a limit depends on the kernel, Check tries what it does. It needs what
// Load needs then.
func Check(members []Member) error { return check(members, nil, thisKernel) }

func check(members []Member, counts *ebpf.Map, kernel facts) error {
	if err := checkKinds(members); err != nil {
		return err
	}
	if p := newPlan(members, inlined, counts); p.alone() || p.check(kernel) == nil {
		return nil
	}
	return newPlan(members, called, counts).check(kernel)
}

// What one program can have.
const (
	maxMaps         = 64
	maxInstructions = 1_000_000
	maxFunctions    = 256
	maxStack        = 512
	maxTailStack    = 256
)

// checkKinds finds members that can't be in one program whatever their size.
func checkKinds(members []Member) error {
	if len(members) == 0 {
		return errNoMembers
	}
	if err := checkLicenses(members); err != nil {
		return err
	}
	first := members[0]
	kconfig := ""
	for _, m := range members {
		spec := m.Program.Spec
		fail := func(l Limit, hint, format string, args ...any) error {
			return &LimitError{Limit: l, Member: m.Name, Detail: fmt.Sprintf(format, args...), Hint: hint}
		}
		if spec.Type != ebpf.XDP || len(spec.Instructions) == 0 {
			return fmt.Errorf("member %q is a program of type %s; link programs for the XDP hook only", m.Name, spec.Type)
		}
		if len(members) == 1 {
			break
		}
		if spec.Ifindex != first.Program.Spec.Ifindex || (spec.Flags^first.Program.Spec.Flags)&unix.BPF_F_XDP_DEV_BOUND_ONLY != 0 {
			return fail(LimitDevice, "prepare all members for the same interface, or none for any",
				"it is bound to %s, and %q to %s", device(spec), first.Name, device(first.Program.Spec))
		}
		if usesKconfig(spec.Instructions) {
			if kconfig != "" {
				return fail(LimitKconfig, hintElsewhere, "it asks for values of the kernel's configuration (.kconfig), and %q does, too", kconfig)
			}
			kconfig = m.Name
		}
		if throws(spec.Instructions) {
			return fail(LimitExceptions, hintElsewhere, "it throws exceptions, which would end the whole chain")
		}
	}
	return nil
}

func device(p *ebpf.ProgramSpec) string {
	if p.Ifindex == 0 {
		return "no device"
	}
	if p.Flags&unix.BPF_F_XDP_DEV_BOUND_ONLY == 0 {
		return fmt.Sprintf("the card of interface %d", p.Ifindex)
	}
	return fmt.Sprintf("interface %d", p.Ifindex)
}

// checkLicenses names the first member whose license is not compatible with the
// GPL, if that of another is.
func checkLicenses(members []Member) error {
	compatible := func(m Member) bool { return gplCompatible(m.Program.Spec.License) }
	is := slices.IndexFunc(members, compatible)
	isNot := slices.IndexFunc(members, func(m Member) bool { return !compatible(m) })
	if is < 0 || isNot < 0 {
		return nil
	}
	m, other := members[isNot], members[is]
	return &LimitError{
		Limit: LimitLicense, Member: m.Name, Hint: hintElsewhere,
		Detail: fmt.Sprintf("its license is %q and that of %q is %q, of which only the second is compatible with the GPL",
			m.Program.Spec.License, other.Name, other.Program.Spec.License),
	}
}

// gplCompatible tells whether the kernel counts the license as compatible.
func gplCompatible(license string) bool {
	switch license {
	case "GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL":
		return true
	}
	return false
}

// license is that of the whole: the one that all have, or else, of licenses that
// are compatible with the GPL, the GPL. All others are the same to the kernel.
func license(members []Member) string {
	first := members[0].Program.Spec.License
	for _, m := range members {
		if m.Program.Spec.License != first && gplCompatible(first) {
			return "GPL"
		}
	}
	return first
}

// usesKconfig tells whether the code reads .kconfig: that is a map without a
// name, which the loader makes.
func usesKconfig(code asm.Instructions) bool {
	return slices.ContainsFunc(code, func(ins asm.Instruction) bool {
		return ins.IsLoadFromMap() && ins.Reference() == "" && ins.Map() == nil
	})
}

// throws tells whether the code throws exceptions, or has a function for when it
// does.
func throws(code asm.Instructions) bool {
	return slices.ContainsFunc(code, func(ins asm.Instruction) bool {
		if ins.IsKfuncCall() && ins.Reference() == "bpf_throw" {
			return true
		}
		f := btf.FuncMetadata(&ins)
		return f != nil && slices.ContainsFunc(f.Tags, func(tag string) bool { return strings.HasPrefix(tag, "exception_callback:") })
	})
}

// facts are what only the kernel knows.
type facts struct {
	// mapID tells one map from another; it is 0 where it can't be told.
	mapID func(*ebpf.Map) uint32
	// frame is what a function takes of the stack that uses so much.
	frame func(stack int) int
	// calls tells whether functions can call each other so deep below a main
	// function, the first of them being of that kind.
	calls func(depth int, first btf.FuncLinkage) bool
	// tailCalls tells whether functions that are called can make them.
	tailCalls func() bool
}

// check finds what the members have too much of.
func (p plan) check(kernel facts) error {
	all := p.codes
	// most is the member that has the most of something.
	most := func(of func(code) int) (string, int) {
		c := slices.MaxFunc(all, func(a, b code) int { return of(a) - of(b) })
		return c.member.Name, of(c)
	}

	room, counting := maxMaps, ""
	if p.counts != nil {
		room, counting = room-1, " beside that which the chain counts in"
	}
	if n := countMaps(all, kernel.mapID); n > room {
		name, its := most(func(c code) int { return len(c.maps) })
		return &LimitError{
			Limit: LimitMaps, Member: name, Hint: hintElsewhere,
			Detail: fmt.Sprintf("all members use %d maps, it %d of them, and a program can use %d%s", n, its, room, counting),
		}
	}
	instructions, functions := 0, 1
	for i, c := range all {
		instructions += c.size + len(p.counting(i, p.after(i))) + 2
		functions += len(c.functions)
		if p.inlined[i] {
			functions--
		}
	}
	if instructions > maxInstructions {
		name, its := most(func(c code) int { return c.size })
		return &LimitError{
			Limit: LimitInstructions, Member: name, Hint: hintElsewhere,
			Detail: fmt.Sprintf("all members have %d instructions, it %d of them, and a program can have %d", instructions, its, maxInstructions),
		}
	}
	if functions > maxFunctions {
		name, its := most(func(c code) int { return len(c.functions) })
		return &LimitError{
			Limit: LimitFunctions, Member: name, Hint: hintElsewhere,
			Detail: fmt.Sprintf("the chain has %d functions, it %d of them, and a program can have %d", functions, its, maxFunctions),
		}
	}
	main := kernel.frame(p.frame)
	for i, c := range all {
		if err := c.checkCalls(main, p.inlined[i], kernel); err != nil {
			return err
		}
		if c.tailCalls() && !kernel.tailCalls() {
			return &LimitError{
				Limit: LimitTailCalls, Member: c.member.Name, Hint: "turn on the kernel's compiler with sysctl net.core.bpf_jit_enable=1, or leave it out",
				Detail: "it makes tail calls, which this kernel only lets programs make that have one function",
			}
		}
	}
	return nil
}

// countMaps counts the maps of all members. What they share is one map, also
// where each has opened it for itself.
func countMaps(all []code, id func(*ebpf.Map) uint32) int {
	total := 0
	for _, c := range all {
		total += len(c.maps)
	}
	if total < maxMaps {
		return total
	}
	total = 0
	seen := map[uint32]bool{}
	for _, c := range all {
		for name := range c.maps {
			m := c.member.Program.Maps[name]
			if m == nil {
				total++ // of its own, as far as is known: .kconfig is
				continue
			}
			if id := id(m); id == 0 {
				total++
			} else {
				seen[id] = true
			}
		}
	}
	return total + len(seen)
}
