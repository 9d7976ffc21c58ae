package object

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Prepared is a program whose maps are there, and which is not in the kernel
// yet: it can be loaded as it is, or be linked with others into one, see package
// [github.com/holdfast-bpf/holdfast/chain/fused]. The caller closes it.
type Prepared struct {
	Object string // the object's name
	Info   ProgramInfo
	// Spec is the program with all functions that it calls. It names the maps
	// that it uses.
	Spec      *ebpf.ProgramSpec
	Maps      map[string]*ebpf.Map // by name in the object, also .rodata and the like
	RunConfig RunConfig
	Digest    string // see [Loaded.Digest]

	opts LoadOptions
	pins *pins
}

// Prepare does all of what [Object.Load] does before it loads the program: it
// makes the maps, with the values of variables and the programs that belong into
// them. Pins that are there are used, and none are made yet, see [Prepared.Pin].
// Errors are those of Load.
func (o *Object) Prepare(opts LoadOptions) (*Prepared, error) {
	p, err := o.prepare(opts)
	if err != nil {
		return nil, errorf("prepare", o.name, "", err)
	}
	return p, nil
}

// Resume returns what Prepare returned earlier, from the maps that were made
// then: by name, as in [Prepared.Maps], all that the program uses. Nothing is
// made and nothing put into them, so variables need not be set again, and
// PinMaps and MapReplacements are without effect. The Digest is that of the
// object without its variables. The maps stay the caller's to close.
//
// A map that is missing, or is not one that the object would make, is an
// [ErrMap].
func (o *Object) Resume(opts LoadOptions, existing map[string]*ebpf.Map) (*Prepared, error) {
	p, err := o.resume(opts, existing)
	if err != nil {
		return nil, errorf("resume", o.name, "", err)
	}
	return p, nil
}

// Load loads the program alone, as [Object.Load] does. The caller closes what is
// returned; the maps stay open.
func (p *Prepared) Load() (*ebpf.Program, error) {
	program, err := p.load()
	if err != nil {
		return nil, errorf("load", p.Object, p.Info.Name, err)
	}
	return program, nil
}

// Pin pins the maps that ask for it by name and had no pin yet, all or none, in
// the directory that was given to Prepare. It is called last, so that what can't
// be loaded leaves no pins. Where somebody else has pinned such a map meanwhile
// the error is an [fs.ErrExist], and another Prepare finds the pin.
func (p *Prepared) Pin() error {
	if err := p.pins.create(p.Maps); err != nil {
		return errorf("pin the maps of", p.Object, p.Info.Name, err)
	}
	p.pins.missing = nil
	return nil
}

// Close closes the descriptors of the maps.
func (p *Prepared) Close() error {
	var errs []error
	for _, m := range p.Maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// prepared is what is known of the chosen program, without its maps, and what it
// needs.
func (o *Object) prepared(opts LoadOptions) (*Prepared, *ebpf.CollectionSpec, error) {
	chosen, err := o.choose(opts.Program)
	if err != nil {
		return nil, nil, err
	}
	info := programInfo(chosen)
	rc, err := o.runConfig(info.Name)
	if err != nil {
		return nil, nil, err
	}
	program, needs, err := o.extract(chosen, opts)
	if err != nil {
		return nil, nil, err
	}
	return &Prepared{
		Object: o.name, Info: info, Spec: program, Maps: make(map[string]*ebpf.Map),
		RunConfig: rc, Digest: o.digest(program), opts: opts, pins: &pins{},
	}, needs, nil
}

func (o *Object) prepare(opts LoadOptions) (*Prepared, error) {
	p, needs, err := o.prepared(opts)
	if err != nil {
		return nil, err
	}
	if p.pins, err = openPins(needs, opts.PinMaps); err != nil {
		return nil, err
	}
	defer p.pins.close()

	replacements := maps.Clone(p.pins.found)
	for name, m := range opts.MapReplacements {
		if _, ok := o.spec.Maps[name]; !ok {
			return nil, &Error{Err: fmt.Errorf("%w: there is no map %q to replace, there are %v", ErrMap, name, slices.Sorted(maps.Keys(needs.Maps)))}
		}
		if _, used := needs.Maps[name]; used {
			replacements[name] = m
			delete(p.pins.missing, name)
		}
	}
	made, err := ebpf.NewCollectionWithOptions(needs, ebpf.CollectionOptions{MapReplacements: replacements})
	if err != nil {
		return nil, p.explain(err)
	}
	// The programs in a program array are held by the array.
	for _, program := range made.Programs {
		program.Close()
	}
	p.Maps = made.Maps
	return p, nil
}

func (o *Object) resume(opts LoadOptions, existing map[string]*ebpf.Map) (_ *Prepared, err error) {
	p, needs, err := o.prepared(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	for _, ins := range p.Spec.Instructions {
		name := ins.Reference()
		if !ins.IsLoadFromMap() || name == "" || p.Maps[name] != nil {
			continue
		}
		m := existing[name]
		if m == nil {
			return nil, &Error{
				Err:  fmt.Errorf("%w: %s is missing, there are %v", ErrMap, name, slices.Sorted(maps.Keys(existing))),
				Hint: "give all maps of the program, or prepare it anew",
			}
		}
		spec := needs.Maps[name]
		if spec == nil {
			return nil, &Error{Err: fmt.Errorf("%w: the program uses a map %s, which the object does not define", ErrFormat, name), Hint: "compile it anew"}
		}
		// The loader makes variables readable through memory where the kernel
		// can do that.
		spec.Flags |= m.Flags() & unix.BPF_F_MMAPABLE
		if err := spec.Compatible(m); err != nil {
			return nil, p.explain(fmt.Errorf("map %s: %w", name, err))
		}
		if p.Maps[name], err = m.Clone(); err != nil {
			return nil, &Error{Err: fmt.Errorf("%w: %s: %w", ErrMap, name, err)}
		}
	}
	return p, nil
}

// load loads the program with its maps.
func (p *Prepared) load() (*ebpf.Program, error) {
	spec := p.Spec.Copy()
	for i := range spec.Instructions {
		ins := &spec.Instructions[i]
		m := p.Maps[ins.Reference()]
		if !ins.IsLoadFromMap() || m == nil {
			continue
		}
		if err := ins.AssociateMap(m); err != nil {
			return nil, err
		}
	}
	program, err := ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogLevel: p.opts.LogLevel})
	if err != nil {
		return nil, p.explain(err)
	}
	return program, nil
}

// tailCalls tells whether the program uses a program array.
func (p *Prepared) tailCalls() bool {
	for _, m := range p.Maps {
		if m.Type() == ebpf.ProgramArray {
			return true
		}
	}
	return false
}

// callbacks tells whether the program takes the address of a function.
func (p *Prepared) callbacks() bool {
	return p.Spec != nil && slices.ContainsFunc(p.Spec.Instructions, func(ins asm.Instruction) bool {
		return ins.IsLoadOfFunctionPointer()
	})
}
