package object

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Action is what an XDP program returns for a packet.
type Action uint8

// The actions, as in enum xdp_action.
const (
	Aborted Action = iota
	Drop
	Pass
	Tx
	Redirect
)

var actionNames = [...]string{"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"}

func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("XDP action %d", uint8(a))
}

// Actions is a set of actions: bit n stands for the action n.
type Actions uint32

// Has tells whether the action is in the set.
func (s Actions) Has(a Action) bool { return s&(1<<a) != 0 }

// With returns the set with the action in it.
func (s Actions) With(a Action) Actions { return s | 1<<a }

// Without returns the set with the action not in it.
func (s Actions) Without(a Action) Actions { return s &^ (1 << a) }

// String lists the actions by name, as in "XDP_DROP,XDP_PASS".
func (s Actions) String() string {
	var names []string
	for a := range Action(len(actionNames)) {
		if s.Has(a) {
			names = append(names, a.String())
		}
	}
	return strings.Join(names, ",")
}

// RunConfig is where in a chain a program wants to run.
type RunConfig struct {
	Priority  uint32  // lower runs first
	ProceedOn Actions // the chain goes on when the program returned one of these
}

// DefaultRunConfig is the run configuration of a program that does not ask for
// any: priority 50, and the chain goes on after XDP_PASS.
func DefaultRunConfig() RunConfig {
	return RunConfig{Priority: 50, ProceedOn: Actions(0).With(Pass)}
}

// RunConfig returns what the object's BTF says of the program in its section
// .xdp_run_config, in the convention of libxdp, over the defaults. A member
// that the convention does not know is an [ErrRunConfig].
func (o *Object) RunConfig(program string) (RunConfig, error) {
	rc, err := o.runConfig(program)
	if err != nil {
		return RunConfig{}, o.errorf("read the run configuration of", program, err)
	}
	return rc, nil
}

func (o *Object) runConfig(program string) (RunConfig, error) {
	fail := func(what string) (RunConfig, error) {
		return RunConfig{}, &Error{
			Err:  fmt.Errorf("%w: %s", ErrRunConfig, what),
			Hint: "write it with XDP_RUN_CONFIG of xdp/xdp_helpers.h",
		}
	}
	if o.spec.Types == nil {
		return DefaultRunConfig(), nil
	}
	var section *btf.Datasec
	err := o.spec.Types.TypeByName(".xdp_run_config", &section)
	if errors.Is(err, btf.ErrNotFound) {
		return DefaultRunConfig(), nil
	}
	if err != nil {
		return fail(err.Error())
	}
	for _, v := range section.Vars {
		if v.Type.TypeName() != "_"+program {
			continue
		}
		vars, ok := v.Type.(*btf.Var)
		if !ok {
			return fail(fmt.Sprintf("_%s is not a variable", program))
		}
		config, ok := btf.UnderlyingType(vars.Type).(*btf.Struct)
		if !ok {
			return fail(fmt.Sprintf("_%s is not a struct", program))
		}
		var settings []setting
		for _, m := range config.Members {
			value, ok := lengthBehind(m.Type)
			if !ok {
				return fail(fmt.Sprintf("member %q is not a pointer to an array", m.Name))
			}
			settings = append(settings, setting{m.Name, value})
		}
		rc, err := applySettings(settings)
		if err != nil {
			return fail(err.Error())
		}
		return rc, nil
	}
	return DefaultRunConfig(), nil
}

// setting is one __uint(name, value): a member that points to an array of
// value elements.
type setting struct {
	name  string
	value uint32
}

func applySettings(settings []setting) (RunConfig, error) {
	rc := DefaultRunConfig()
next:
	for _, s := range settings {
		if s.name == "priority" {
			rc.Priority = s.value
			continue
		}
		for i, name := range actionNames {
			if s.name != name {
				continue
			}
			rc.ProceedOn = rc.ProceedOn.Without(Action(i))
			if s.value != 0 {
				rc.ProceedOn = rc.ProceedOn.With(Action(i))
			}
			continue next
		}
		return RunConfig{}, fmt.Errorf("member %q is not known, there are priority, %s", s.name, strings.Join(actionNames[:], ", "))
	}
	return rc, nil
}

func lengthBehind(t btf.Type) (uint32, bool) {
	p, ok := btf.UnderlyingType(t).(*btf.Pointer)
	if !ok {
		return 0, false
	}
	a, ok := btf.UnderlyingType(p.Target).(*btf.Array)
	if !ok {
		return 0, false
	}
	return a.Nelems, true
}
