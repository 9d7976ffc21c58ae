package fused

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/verifierlog"
)

// RefusedError says that the kernel loads each member alone, but not all of them
// as one program, for a reason that is no known limit.
type RefusedError struct {
	// Log is what the verifier said, without the way that it took.
	Log string
	Err error
}

func (e *RefusedError) Error() string {
	why := e.Err.Error()
	if telling := verifierlog.Telling(strings.Split(e.Log, "\n")); telling != "" {
		why = telling
	}
	return fmt.Sprintf("the kernel loads each member alone, but not the chain: %s; choose the live engine, where each member is a program of its own", why)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// explain finds out why the kernel did not load the chain.
func explain(p plan, spec *ebpf.ProgramSpec, err error) error {
	members := p.members
	if p.alone() {
		return explainAlone(members[0], err)
	}
	// Who may load nothing can't try what the kernel does either.
	if !errors.Is(err, unix.EPERM) {
		limit := check(members, p.counts, thisKernel)
		var e *LimitError
		if errors.As(limit, &e) {
			e.cause = err
		}
		if limit != nil {
			return limit
		}
	}
	// Of the log only what the verifier complains of: the way it took there can
	// be of any length.
	program, err := ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats})
	if err == nil {
		program.Close()
		return errors.New("the kernel refused the chain at first, and then did not; try again")
	}
	largest, most := "", uint32(0)
	for _, m := range members {
		program, err := m.Program.Load()
		if err != nil {
			return fmt.Errorf("member %q: %w", m.Name, err)
		}
		if n := verified(program); n > most {
			largest, most = m.Name, n
		}
		program.Close()
	}

	refused := &RefusedError{Err: err}
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		refused.Log = strings.Join(ve.Log, "\n")
		if strings.Contains(refused.Log, "BPF program is too large") {
			return &LimitError{
				Limit: LimitInstructions, Member: largest, Hint: hintElsewhere, cause: err,
				Detail: "the verifier gave up on all of them: " + verifierlog.Telling(ve.Log),
			}
		}
	}
	if errors.Is(err, unix.EINVAL) && (ve == nil || verifierlog.Telling(ve.Log) == "") {
		if e := explainPrograms(members, spec, err); e != nil {
			return e
		}
	}
	return refused
}

// explainAlone tries once more, to hear why.
func explainAlone(m Member, err error) error {
	program, explained := m.Program.Load()
	if explained != nil {
		return fmt.Errorf("member %q: %w", m.Name, explained)
	}
	program.Close()
	return fmt.Errorf("member %q: the kernel refused it at first (%w), and then did not; try again", m.Name, err)
}

// verified is how many instructions the verifier followed, which kernels tell
// since 5.16.
func verified(p *ebpf.Program) uint32 {
	info, err := p.Info()
	if err != nil {
		return 0
	}
	n, _ := info.VerifiedInstructions()
	return n
}

// explainPrograms is for a chain that the verifier accepts and the kernel does
// not: a map that holds programs belongs to others.
func explainPrograms(members []Member, spec *ebpf.ProgramSpec, err error) error {
	type holder struct {
		member Member
		name   string
	}
	var holders []holder
	for _, m := range members {
		for name, held := range m.Program.Maps {
			switch held.Type() {
			case ebpf.ProgramArray, ebpf.DevMap, ebpf.DevMapHash, ebpf.CPUMap:
				holders = append(holders, holder{m, name})
			}
		}
	}
	if len(holders) == 0 {
		return nil
	}
	copes := func(p *ebpf.ProgramSpec) bool { return p.Flags&unix.BPF_F_XDP_HAS_FRAGS != 0 }
	// The likeliest is one that copes with fragments, where the chain does not.
	differs := func(h holder) int {
		if copes(h.member.Program.Spec) != copes(spec) {
			return 0
		}
		return 1
	}
	h := slices.MinFunc(holders, func(a, b holder) int {
		return cmp.Or(cmp.Compare(differs(a), differs(b)), cmp.Compare(a.name, b.name))
	})
	does := map[bool]string{true: "copes", false: "does not cope"}
	return &LimitError{
		Limit: LimitPrograms, Member: h.member.Name, cause: err,
		Detail: fmt.Sprintf("its map %s has been used by programs which differ from the chain in whether they cope with fragments, and the chain %s with them", h.name, does[copes(spec)]),
		Hint:   "put members that cope with fragments, and those that don't, into different chains, or give it a new map",
	}
}
