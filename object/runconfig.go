package object

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"

	"github.com/holdfast-bpf/holdfast/chain"
)

// RunConfig is where in a chain a program wants to run.
type RunConfig struct {
	Priority  uint32        // lower runs first
	ProceedOn chain.Actions // the chain goes on when the program returned one of these
}

// DefaultRunConfig is the run configuration of a program that does not ask for
// any: priority 50, and the chain goes on after XDP_PASS.
func DefaultRunConfig() RunConfig {
	return RunConfig{Priority: chain.DefaultPriority, ProceedOn: chain.DefaultProceedOn}
}

// RunConfig returns what the object's BTF says of the program in its section
// .xdp_run_config, in the convention of libxdp, over the defaults. A member
// that the convention does not know is an [ErrRunConfig].
func (o *Object) RunConfig(program string) (RunConfig, error) {
	rc, err := o.runConfig(program)
	if err != nil {
		return RunConfig{}, errorf("read the run configuration of", o.name, program, err)
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
		for _, a := range chain.AllActions() {
			if s.name != a.String() {
				continue
			}
			rc.ProceedOn = rc.ProceedOn.Without(a)
			if s.value != 0 {
				rc.ProceedOn = rc.ProceedOn.With(a)
			}
			continue next
		}
		return RunConfig{}, fmt.Errorf("member %q is not known, there are priority, %s", s.name, chain.Set(chain.AllActions()...))
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
