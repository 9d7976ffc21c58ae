package object

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

// LoadOptions say how an object's program is loaded. The zero value loads the
// only XDP program there is, with maps of its own.
type LoadOptions struct {
	// Program picks one of several programs.
	Program Choice

	// PinMaps is a directory in a bpffs. A map that asks to be pinned by name
	// is taken from there, or pinned there once the program is loaded. The
	// directory must exist. If it is empty such maps are not shared and not
	// pinned.
	PinMaps string

	// MapReplacements are maps to use instead of making those of that name.
	// They stay the caller's to close.
	MapReplacements map[string]*ebpf.Map

	// LogLevel asks for the verifier's log of a program that loads, see
	// [Loaded.VerifierLog]. The log of one that does not load is always kept.
	LogLevel ebpf.LogLevel

	// NoAttachType loads the program with expected attach type 0 instead of
	// BPF_XDP. A link never changes between the two, so this is only for a
	// link that was made with a program of type 0 elsewhere.
	NoAttachType bool

	// Ifindex binds the program to one interface of the calling thread's
	// network namespace: it may then use what only that device offers, and runs
	// nowhere else. Needs Linux 6.3.
	Ifindex int

	// Offload loads the program into the device Ifindex itself, for mode
	// offload. The device must run programs; maps stay in the host.
	Offload bool

	// Extend loads the program as an extension (freplace), which can take the
	// place of a function of a program that is loaded, instead of being
	// attached to a hook. It has no expected attach type and copes with
	// fragments, or is bound to a device, as the other program is and does, so
	// NoAttachType, Ifindex and Offload are without effect.
	Extend *Extension
}

// Extension says which function an extension is verified against: one of a
// program that stays the caller's, and has BTF. Errors: [ErrExtension].
type Extension struct {
	Target   *ebpf.Program
	Function string
}

// Loaded is a program in the kernel, with its maps. Attached or pinned, the
// program stays when Loaded is closed.
type Loaded struct {
	Object    string // the object's name
	Info      ProgramInfo
	Program   *ebpf.Program
	Maps      map[string]*ebpf.Map // by name in the object, also .rodata and the like
	RunConfig RunConfig

	// Digest identifies what was asked for, in 64 hex digits: the same for the
	// same file, program, values of variables, expected attach type and device,
	// and for nothing else. It knows nothing of maps that were made elsewhere:
	// pinned ones and replacements.
	Digest string

	VerifierLog string // what LogLevel asked for
}

// ProgramArrays names the maps that do not live by the program alone: the
// kernel empties a program array, so that its tail calls fall through, when the
// last descriptor and the last pin of it are gone, even while the program runs.
// Whoever lets the program outlive the process has to pin them.
func (l *Loaded) ProgramArrays() []string {
	var names []string
	for name, m := range l.Maps {
		if m.Type() == ebpf.ProgramArray {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ProgramID is the id that the kernel gave the program.
func (l *Loaded) ProgramID() (uint32, error) {
	info, err := kernel.ReadProgram(kernel.FD(l.Program.FD()))
	return info.ID, err
}

// Close closes the descriptors of the program and its maps.
func (l *Loaded) Close() error {
	errs := []error{l.Program.Close()}
	for _, m := range l.Maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Load puts the chosen program into the kernel, with the maps that it uses and
// the programs that these maps hold from the start. Nothing else of the object
// is loaded, so nothing else of it can fail. The caller closes what is
// returned. A failed load leaves nothing behind, no pins either.
//
// Needs CAP_BPF and CAP_NET_ADMIN; before Linux 5.11 also locked memory, see
// the package comment. Errors are of type [*Error].
func (o *Object) Load(opts LoadOptions) (*Loaded, error) {
	l, err := o.load(opts)
	// Two loads may find no pin and both set about making it. The one that
	// comes second starts over and finds it.
	for range 3 {
		if !errors.Is(err, errPinnedMeanwhile) {
			break
		}
		l, err = o.load(opts)
	}
	if err != nil {
		return nil, errorf("load", o.name, "", err)
	}
	return l, nil
}

func (o *Object) load(opts LoadOptions) (*Loaded, error) {
	p, err := o.prepare(opts)
	if err != nil {
		return nil, err
	}
	program, err := p.load()
	if err != nil {
		p.Close()
		return nil, err
	}
	if err := p.pins.create(p.Maps); err != nil {
		program.Close()
		p.Close()
		return nil, err
	}
	return &Loaded{
		Object: p.Object, Info: p.Info, Program: program, Maps: p.Maps,
		RunConfig: p.RunConfig, Digest: p.Digest, VerifierLog: program.VerifierLog,
	}, nil
}

// programSpec is a copy of one of the object's programs as the options want it.
func (o LoadOptions) programSpec(p *ebpf.ProgramSpec) *ebpf.ProgramSpec {
	p = p.Copy()
	if p.Type == ebpf.UnspecifiedProgram {
		p.Type, p.AttachType = ebpf.XDP, ebpf.AttachXDP
	}
	if o.Extend != nil {
		// What an extension tail-calls extends nothing, but has to be the same
		// in these two respects.
		p.AttachType, p.Flags = ebpf.AttachNone, p.Flags&^unix.BPF_F_XDP_HAS_FRAGS
		return p
	}
	if o.NoAttachType {
		p.AttachType = ebpf.AttachNone
	}
	if o.Ifindex != 0 {
		p.Ifindex = uint32(o.Ifindex)
		if !o.Offload {
			p.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
		}
	}
	return p
}

// extract copies the chosen program, and makes a collection of what it needs:
// its maps, and the programs that these hold from the start. Both are as the
// options want them, the object's own are left as they are.
func (o *Object) extract(chosen *ebpf.ProgramSpec, opts LoadOptions) (*ebpf.ProgramSpec, *ebpf.CollectionSpec, error) {
	needs := &ebpf.CollectionSpec{
		Maps:      make(map[string]*ebpf.MapSpec),
		Programs:  make(map[string]*ebpf.ProgramSpec),
		Types:     o.spec.Types,
		ByteOrder: o.spec.ByteOrder,
		// Variables stay empty: the values are written into their maps below,
		// and the loader would map each into memory for as long as it pleases
		// the garbage collector.
	}
	todo := []*ebpf.ProgramSpec{chosen}

	var addMap func(string) error
	addMap = func(name string) error {
		m := o.spec.Maps[name]
		if m == nil || needs.Maps[name] != nil {
			return nil
		}
		m = m.Copy()
		needs.Maps[name] = m
		for _, kv := range m.Contents {
			inner, ok := kv.Value.(string)
			if !ok {
				continue
			}
			if m.Type == ebpf.ArrayOfMaps || m.Type == ebpf.HashOfMaps {
				if err := addMap(inner); err != nil {
					return err
				}
			} else if p := o.spec.Programs[inner]; p != nil && needs.Programs[inner] == nil {
				needs.Programs[inner] = opts.programSpec(p)
				todo = append(todo, p)
			}
		}
		return o.fillVariables(name, m)
	}
	for ; len(todo) > 0; todo = todo[1:] {
		for _, ins := range todo[0].Instructions {
			if ins.IsLoadFromMap() && ins.Reference() != "" {
				if err := addMap(ins.Reference()); err != nil {
					return nil, nil, err
				}
			}
		}
	}

	program := opts.programSpec(chosen)
	if opts.Extend != nil {
		program.Type = ebpf.Extension
		program.AttachTarget, program.AttachTo = opts.Extend.Target, opts.Extend.Function
	}
	return program, needs, nil
}

// fillVariables writes the values of the variables into the map that holds
// their section.
func (o *Object) fillVariables(section string, m *ebpf.MapSpec) error {
	if len(m.Contents) != 1 {
		return nil
	}
	data, ok := m.Contents[0].Value.([]byte)
	if !ok {
		return nil
	}
	data = slices.Clone(data)
	for _, v := range o.spec.Variables {
		if v.SectionName != section {
			continue
		}
		if uint64(v.Offset)+uint64(len(v.Value)) > uint64(len(data)) {
			return &Error{Err: fmt.Errorf("%w: variable %s lies beyond the end of section %s", ErrFormat, v.Name, section), Hint: "compile it anew"}
		}
		copy(data[v.Offset:], v.Value)
	}
	m.Contents = []ebpf.MapKV{{Key: uint32(0), Value: data}}
	return nil
}

// pins are the maps of one load that are shared by name in a directory. The
// loader of cilium/ebpf pins before it knows whether the program loads; here
// the pins are made last, so that a failed load leaves none.
type pins struct {
	found   map[string]*ebpf.Map // by map name
	missing map[string]string    // path by map name
}

var errPinnedMeanwhile = errors.New("another load pinned the map meanwhile")

// openPins opens the pins that are there. It takes the wish to be pinned off
// the specs: the loader is not to act on it.
func openPins(spec *ebpf.CollectionSpec, dir string) (*pins, error) {
	p := &pins{found: make(map[string]*ebpf.Map), missing: make(map[string]string)}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName {
			continue
		}
		m.Pinning = ebpf.PinNone
		if dir == "" {
			continue
		}
		if !bpffs.Is(dir) {
			p.close()
			return nil, &Error{
				Err:  fmt.Errorf("%w: map %s is to be pinned in %s, which is not a directory in a bpffs", ErrMap, name, dir),
				Hint: "make the directory where a bpffs is mounted, such as below /sys/fs/bpf",
			}
		}
		path := filepath.Join(dir, m.Name)
		pinned, err := ebpf.LoadPinnedMap(path, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			p.missing[name] = path
		case err != nil:
			p.close()
			return nil, &Error{Err: fmt.Errorf("%w: open the pinned map %s: %w", ErrMap, path, err), Hint: "remove the pin or pin in another directory"}
		default:
			p.found[name] = pinned
		}
	}
	return p, nil
}

// create pins the maps that had no pin, all or none.
func (p *pins) create(all map[string]*ebpf.Map) error {
	var done []*ebpf.Map
	for name, path := range p.missing {
		err := all[name].Pin(path)
		if err == nil {
			done = append(done, all[name])
			continue
		}
		for _, m := range done {
			err = errors.Join(err, m.Unpin())
		}
		if errors.Is(err, fs.ErrExist) {
			return &Error{Err: fmt.Errorf("%w: %s: %w", ErrMap, path, errPinnedMeanwhile), Hint: "try again", cause: err}
		}
		return &Error{Err: fmt.Errorf("%w: pin %s: %w", ErrMap, path, err), Hint: "pin in another directory"}
	}
	return nil
}

func (p *pins) close() {
	for _, m := range p.found {
		m.Close()
	}
}
