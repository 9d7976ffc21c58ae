package live

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The asm/ headers lie in a directory named after the machine; clang ignores
// those that do not exist. From v3 of the instruction set on, which every kernel
// with extensions knows, a comparison of 32 bits is one instruction.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" live ../../bpf/live.c

// What bpf/live.c calls itself.
const (
	programName  = "holdfast_live"
	countingName = "holdfast_live_s" // which counts
	section      = ".bss"
	statsMap     = "stats"
	// magic and layout are what the state begins with.
	magic  = 0x48464c56
	layout = 2
)

// Empty is what a slot returns that no member is in. The chain goes on after it,
// also where a member returns it.
const Empty = 0x48464c56

// What can go wrong beside package xdp's sentinels, for errors.Is. Each is
// wrapped by an [*xdp.Error].
var (
	// ErrNoFreplace: the kernel attaches no extensions, or keeps no type
	// information of programs. It is an ErrNotSupported.
	ErrNoFreplace = fmt.Errorf("%w: live chains can't be had here", xdp.ErrNotSupported)
	// ErrNotDispatcher: the program is none of this package's.
	ErrNotDispatcher = errors.New("not a live dispatcher")
	// ErrLayout: the dispatcher is another version's, which reads and writes it
	// otherwise. It is an ErrNotSupported.
	ErrLayout = fmt.Errorf("%w: a live dispatcher of another layout", xdp.ErrNotSupported)
	// ErrSlotTaken: the kernel lets nobody have the slot, because it has a
	// member, or somebody traces its function. It is an ErrConflict.
	ErrSlotTaken = fmt.Errorf("%w: the slot is taken", xdp.ErrConflict)
	// ErrEnabled: packets may be in the slot. It is an ErrInvalid.
	ErrEnabled = fmt.Errorf("%w: the slot is enabled", xdp.ErrInvalid)
)

// state is the dispatcher's map, as bpf/live.c has it.
type state struct {
	magic, layout uint32

	enabled     atomic.Uint64
	masked      atomic.Uint64
	proceedOn   [slotCount]uint8
	frags       bool
	deviceBound bool
	functions   [slotCount]uint32 // their type ids
	counter     [slotCount]uint8
}

// Options say what kind of dispatcher is loaded. All its members have to fit.
type Options struct {
	// Frags lets it take packets of several buffers. Where the kernel knows
	// none (before Linux 5.18) it is without effect.
	Frags bool
	// Ifindex, if it is not 0, binds it to an interface of the calling
	// thread's network namespace. Needs Linux 6.3.
	Ifindex int
	// Stats, if it is not nil, is a map of [stats.NewMap] that the dispatcher
	// counts in. It stays the caller's to close. A dispatcher without one has
	// not an instruction more for it.
	Stats *ebpf.Map
}

// Dispatcher is a loaded dispatcher, attached or not. It can be used from
// several goroutines.
type Dispatcher struct {
	program *ebpf.Program
	id      uint32
	statsID uint32 // of the map that it counts in, or 0
	// memory is the map, as state.
	memory []byte
	state  *state
	mutex  sync.Mutex // of who writes state
}

var spec = sync.OnceValues(loadLive)

// Load loads a dispatcher without members: all slots are empty and none is
// enabled. Attached so, it passes every packet. The caller closes it.
//
// A kernel that takes no extensions may take the dispatcher still, and the
// members not: [object.ErrExtension].
//
// Errors: xdp.ErrPermission, xdp.ErrNotSupported, ErrNoFreplace.
func Load(o Options) (*Dispatcher, error) {
	d, err := load(o)
	if o.Frags && errors.Is(err, unix.EINVAL) {
		o.Frags = false
		d, err = load(o)
	}
	if err != nil {
		return nil, explainLoad(o, err)
	}
	return d, nil
}

func load(o Options) (*Dispatcher, error) {
	parsed, err := spec()
	if err != nil {
		return nil, err
	}
	data := parsed.Maps[section].Copy()
	data.Flags |= unix.BPF_F_MMAPABLE
	name, given := programName, ebpf.CollectionOptions{}
	specs := map[string]*ebpf.MapSpec{section: data}
	if o.Stats != nil {
		name = countingName
		specs[statsMap] = parsed.Maps[statsMap]
		given.MapReplacements = map[string]*ebpf.Map{statsMap: o.Stats}
	}
	program := parsed.Programs[name].Copy()
	if o.Frags {
		program.Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	if o.Ifindex != 0 {
		program.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
		program.Ifindex = uint32(o.Ifindex)
	}
	loaded, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{
		Types: parsed.Types, ByteOrder: parsed.ByteOrder,
		Maps:     specs,
		Programs: map[string]*ebpf.ProgramSpec{name: program},
	}, given)
	if err != nil {
		return nil, err
	}
	defer loaded.Close()
	d := &Dispatcher{program: loaded.DetachProgram(name)}
	if err := d.begin(loaded.Maps[section], o); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// begin fills in what a new dispatcher has to do with.
func (d *Dispatcher) begin(m *ebpf.Map, o Options) error {
	info, err := kernel.ReadProgram(kernel.FD(d.program.FD()))
	if err != nil {
		return err
	}
	types, err := typesOf(info)
	if err != nil {
		return err
	}
	if err := d.open(info, m); err != nil {
		return err
	}
	if o.Stats != nil {
		if d.statsID, err = kernel.MapID(kernel.FD(o.Stats.FD())); err != nil {
			return err
		}
	}
	s := d.state
	for slot := range Slot(slotCount) {
		var f *btf.Func
		if err := types.TypeByName(slot.function(), &f); err != nil {
			return fmt.Errorf("it has no function %s: %w", slot.function(), err)
		}
		id, err := types.TypeID(f)
		if err != nil {
			return err
		}
		s.functions[slot], s.proceedOn[slot] = uint32(id), uint8(chain.DefaultProceedOn)
	}
	s.frags, s.deviceBound = o.Frags, o.Ifindex != 0
	s.magic, s.layout = magic, layout
	return nil
}

// errNoTypes says that the kernel took the dispatcher, but not its BTF.
var errNoTypes = errors.New("the kernel keeps no type information (BTF) of programs")

func typesOf(p kernel.ProgramInfo) (*btf.Spec, error) {
	if p.BTFID == 0 {
		return nil, errNoTypes
	}
	h, err := btf.NewHandleFromID(btf.ID(p.BTFID))
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.Spec(nil)
}

// stateSize is what the map holds at least: another layout may hold more.
const stateSize = unsafe.Sizeof(state{})

func isState(m *ebpf.Map) bool {
	return uintptr(m.ValueSize()) >= stateSize && m.MaxEntries() == 1 && m.Type() == ebpf.Array && m.Flags()&unix.BPF_F_MMAPABLE != 0
}

// open maps the state.
func (d *Dispatcher) open(info kernel.ProgramInfo, m *ebpf.Map) error {
	d.id = info.ID
	memory, err := kernel.MapMemory(kernel.FD(m.FD()), int(stateSize))
	if err != nil {
		return fmt.Errorf("map the dispatcher's state into memory: %w", err)
	}
	d.memory, d.state = memory, (*state)(unsafe.Pointer(&memory[0]))
	return nil
}

func explainLoad(o Options, err error) error {
	e := &xdp.Error{Op: "load dispatcher", Err: xdp.ErrUnexpected, Detail: err.Error(), Hint: "attach one program alone"}
	errors.As(err, &e.Errno)
	switch {
	case errors.Is(err, errNoTypes):
		e.Err, e.Hint = ErrNoFreplace, "attach one program alone, or use a kernel with CONFIG_DEBUG_INFO_BTF"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Err, e.Detail = xdp.ErrPermission, "the kernel does not let this process load a dispatcher"
		e.Hint = "run as root"
	case o.Ifindex != 0:
		e.Err, e.Detail = xdp.ErrNotSupported, "the kernel loads no dispatcher for this device"
		e.Hint = "load the programs for no device"
	}
	return e
}

// Open opens a dispatcher that runs, or is loaded, by its program's id. The
// caller closes it. It needs CAP_SYS_ADMIN.
//
// Errors: ErrNotDispatcher, ErrLayout, xdp.ErrNotFound, xdp.ErrPermission.
func Open(programID uint32) (*Dispatcher, error) {
	d, e := open(programID)
	if e != nil {
		e.Op, e.Detail = "open dispatcher", fmt.Sprintf("program %d %s", programID, e.Detail)
		return nil, e
	}
	return d, nil
}

func open(programID uint32) (*Dispatcher, *xdp.Error) {
	fd, err := kernel.ProgramByID(programID)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, &xdp.Error{Err: xdp.ErrNotFound, Detail: "is not loaded", Hint: "look at what is attached now"}
	case errors.Is(err, unix.EPERM):
		return nil, &xdp.Error{Err: xdp.ErrPermission, Detail: "may not be looked into", Hint: "run as root: it needs CAP_SYS_ADMIN", Errno: unix.EPERM}
	case err != nil:
		return nil, unexpected(err)
	}
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		fd.Close()
		return nil, unexpected(err)
	}
	program, err := ebpf.NewProgramFromFD(int(fd))
	if err != nil {
		return nil, unexpected(err)
	}
	d := &Dispatcher{program: program}
	if e := d.recognize(info); e != nil {
		d.Close()
		e.Detail = fmt.Sprintf("%q %s", info.Name, e.Detail)
		return nil, e
	}
	return d, nil
}

func unexpected(err error) *xdp.Error {
	e := &xdp.Error{Err: xdp.ErrUnexpected, Detail: "can't be read: " + err.Error(), Hint: "try again"}
	errors.As(err, &e.Errno)
	return e
}

// recognize opens what belongs to the program, or says why it is not one that
// this package made.
func (d *Dispatcher) recognize(info kernel.ProgramInfo) *xdp.Error {
	not := func(detail string) *xdp.Error {
		return &xdp.Error{Err: ErrNotDispatcher, Detail: detail, Hint: "it can be detached or replaced as a whole"}
	}
	counts := info.Name == countingName
	if ebpf.ProgramType(info.Type) != ebpf.XDP || info.Name != programName && !counts {
		return not("has another name or type")
	}
	switch {
	case counts && info.NumMaps != 2:
		return not(fmt.Sprintf("has %d maps instead of two", info.NumMaps))
	case !counts && info.NumMaps != 1:
		return not(fmt.Sprintf("has %d maps instead of one", info.NumMaps))
	}
	// The kernel tells maps in the order that the program first uses them in.
	m, err := ebpf.NewMapFromID(ebpf.MapID(info.MapIDs[0]))
	if err != nil {
		return unexpected(err)
	}
	defer m.Close()
	if !isState(m) {
		return not("has another map")
	}
	d.statsID = info.MapIDs[1]
	if err := d.open(info, m); err != nil {
		return unexpected(err)
	}
	switch s := d.state; {
	case s.magic != magic:
		return not("has something else in its map")
	case s.layout != layout:
		return &xdp.Error{
			Err: ErrLayout, Detail: fmt.Sprintf("has layout %d, and this Holdfast knows %d only", s.layout, layout),
			Hint: "use the version of Holdfast that attached it",
		}
	}
	return nil
}

// Close frees the handle. It detaches nothing: what is attached stays so, and
// runs. The dispatcher must not be used afterwards.
func (d *Dispatcher) Close() error {
	err := d.program.Close()
	if d.memory != nil {
		err = errors.Join(err, kernel.UnmapMemory(d.memory))
		d.memory, d.state = nil, nil
	}
	return err
}

// Program is what is attached to a hook. It stays the dispatcher's to close.
func (d *Dispatcher) Program() *ebpf.Program { return d.program }

// ID is the program's id.
func (d *Dispatcher) ID() uint32 { return d.id }

// Frags tells whether it takes packets of several buffers.
func (d *Dispatcher) Frags() bool { return d.state.frags }

// DeviceBound tells whether it was loaded for one interface only.
func (d *Dispatcher) DeviceBound() bool { return d.state.deviceBound }

// StatsID is the id of the map that the dispatcher counts in, 0 where it does not
// count.
func (d *Dispatcher) StatsID() uint32 { return d.statsID }

// Extension is what a member is loaded for, see [object.LoadOptions]. It can be
// attached to any slot of any dispatcher then, but for one that was loaded for a
// dispatcher that is bound to a device, which goes only where that is so.
func (d *Dispatcher) Extension(slot Slot) object.Extension {
	return object.Extension{Target: d.program, Function: slot.function()}
}

// Attach attaches an extension to a slot that is not enabled, and returns the
// link, which is all that holds it there: the caller closes or keeps it. One
// program may be in several slots and dispatchers, by a link for each.
//
// Errors: ErrSlotTaken, ErrEnabled, ErrNoFreplace, xdp.ErrInvalid where the
// program is no extension or does not fit, xdp.ErrPermission.
func (d *Dispatcher) Attach(slot Slot, program kernel.FD) (kernel.FD, error) {
	if err := d.unused("attach to", slot); err != nil {
		return -1, err
	}
	link, err := kernel.LinkCreateExtension(int(program), d.program.FD(), d.state.functions[slot])
	if err != nil {
		return -1, d.explainAttach(slot, err)
	}
	return link, nil
}

func (d *Dispatcher) explainAttach(slot Slot, err error) error {
	const enotsupp = unix.Errno(524) // the kernel's own, which user space has no name for
	e := d.error("attach to", slot)
	errors.As(err, &e.Errno)
	switch {
	case errors.Is(err, unix.EBUSY):
		e.Err, e.Hint = ErrSlotTaken, "look at what is there now and decide again"
		switch s, err := d.Read(); {
		case err != nil || !s.Told:
		case s.Members[slot] != (Occupant{}):
			e.Detail = fmt.Sprintf("link %d holds program %d there", s.Members[slot].LinkID, s.Members[slot].ProgramID)
		default:
			e.Detail, e.Hint = "no extension is there any more, but maybe a program that traces the function", "try again, or end the tracing"
		}
	case errors.Is(err, enotsupp), errors.Is(err, unix.EOPNOTSUPP):
		e.Err, e.Detail = ErrNoFreplace, "the kernel attaches no extensions on this machine"
		e.Hint = "attach one program alone"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Err, e.Detail, e.Hint = xdp.ErrPermission, "the kernel does not let this process attach extensions", "run as root"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADF):
		e.Err, e.Detail = xdp.ErrInvalid, "the program is no extension that fits into the dispatcher"
		e.Hint = "give its object, which is loaded anew"
	}
	return e
}

// error is an error of that operation on a slot, to be filled in.
func (d *Dispatcher) error(op string, slot Slot) *xdp.Error {
	return &xdp.Error{Op: op, Hook: fmt.Sprintf("%s of dispatcher %d", slot, d.id), Err: xdp.ErrUnexpected, Hint: "try again"}
}

// unused says why a slot may not be changed.
func (d *Dispatcher) unused(op string, slot Slot) error {
	e := d.error(op, slot)
	switch {
	case !slot.valid():
		e.Err, e.Detail, e.Hint = xdp.ErrInvalid, fmt.Sprintf("there are slots 0 to %d", slotCount-1), "ask Layout for one"
	case d.Enabled().Has(slot):
		e.Err, e.Hint = ErrEnabled, "use its twin, and enable that in its place"
	default:
		return nil
	}
	return e
}

// Enabled are the slots that packets meet which come now.
func (d *Dispatcher) Enabled() Slots { return slotsOf(d.state.enabled.Load()) }

// SetProceedOn sets after which actions the chain goes on to the next member.
// The slot must not be enabled, and no packet may be in it any more.
//
// Errors: ErrEnabled, xdp.ErrInvalid.
func (d *Dispatcher) SetProceedOn(slot Slot, actions chain.Actions) error {
	const op = "set"
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.unused(op, slot); err != nil {
		return err
	}
	if actions&^chain.Set(chain.AllActions()...) != 0 {
		e := d.error(op, slot)
		e.Err, e.Detail = xdp.ErrInvalid, fmt.Sprintf("%#x has more in it than there are actions", uint32(actions))
		e.Hint = "use those of package chain"
		return e
	}
	d.state.proceedOn[slot] = uint8(actions)
	masked := slotsOf(d.state.masked.Load()).Without(slot)
	if actions != chain.DefaultProceedOn {
		masked = masked.With(slot)
	}
	d.state.masked.Store(masked.word())
	return nil
}

// SetCounter sets which place of the map of counters is that of the slot's member,
// for a dispatcher that counts. The slot must not be enabled, and no packet may be
// in it any more.
//
// Errors: ErrEnabled, xdp.ErrInvalid.
func (d *Dispatcher) SetCounter(slot Slot, place int) error {
	const op = "count for"
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.unused(op, slot); err != nil {
		return err
	}
	if place < 0 || place >= stats.Places {
		e := d.error(op, slot)
		e.Err, e.Detail, e.Hint = xdp.ErrInvalid, fmt.Sprintf("there are places 0 to %d", stats.Places-1), "choose another"
		return e
	}
	d.state.counter[slot] = uint8(place)
	return nil
}

// Commit makes these the slots that packets meet, all at once. Of the two slots
// of a place only one can be enabled: xdp.ErrInvalid.
//
// When it returns, packets that came before may still be in slots that it
// disabled. Wait for [kernel.AwaitGracePeriod] before their links are closed, or
// the slots used again.
func (d *Dispatcher) Commit(enabled Slots) error {
	if both := enabled.crowded(); both != 0 {
		s := both.List()[0]
		e := d.error("enable", s)
		e.Err, e.Detail, e.Hint = xdp.ErrInvalid, "its twin is to be enabled, too", "enable one of them"
		return e
	}
	// A packet that finds a slot enabled must find its mask and its member as
	// well. Where processors may see stores in another order than they are
	// made in, none can that begins after a grace period.
	if runtime.GOARCH != "amd64" {
		if err := kernel.AwaitGracePeriod(); err != nil {
			e := &xdp.Error{Op: "enable slots", Err: xdp.ErrNotSupported, Detail: "the kernel offers no wait for packets under way", Hint: "use a kernel without nohz_full"}
			errors.As(err, &e.Errno)
			return e
		}
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.state.enabled.Store(enabled.word())
	return nil
}

// Occupant is who is in a slot.
type Occupant struct {
	LinkID, ProgramID uint32
}

// State is what a dispatcher is made of.
type State struct {
	Enabled   Slots
	ProceedOn [slotCount]chain.Actions
	// Members are the extensions that are in slots, enabled or not. It is the
	// kernel's word, where it tells: Told is false where it does not, before
	// Linux 5.13, and an extension is attached anywhere on the machine.
	Members map[Slot]Occupant
	Told    bool
}

// Taken are the slots that can't be given to anybody, as far as it is known: see
// [Layout].
func (s State) Taken() Slots {
	taken := s.Enabled
	for slot := range s.Members {
		taken = taken.With(slot)
	}
	return taken
}

// Read reads the dispatcher. It needs CAP_SYS_ADMIN, to go through the links of
// the machine: xdp.ErrPermission.
func (d *Dispatcher) Read() (State, error) {
	s := State{Members: map[Slot]Occupant{}, Told: true}
	d.mutex.Lock()
	s.Enabled = d.Enabled()
	for slot, actions := range d.state.proceedOn {
		s.ProceedOn[slot] = chain.Actions(actions)
	}
	d.mutex.Unlock()
	links, err := kernel.ExtensionLinks()
	if err != nil {
		e := &xdp.Error{Op: "read", Hook: fmt.Sprintf("dispatcher %d", d.id), Err: xdp.ErrUnexpected, Detail: "the links of its members can't be read", Hint: "try again"}
		errors.As(err, &e.Errno)
		if errors.Is(err, unix.EPERM) {
			e.Err, e.Hint = xdp.ErrPermission, "run as root: it needs CAP_SYS_ADMIN"
		}
		return State{}, e
	}
	slots := make(map[uint32]Slot, slotCount)
	for slot, f := range d.state.functions {
		slots[f] = Slot(slot)
	}
	for _, l := range links {
		if l.TargetID == 0 {
			s.Told = false
		}
		if slot, ok := slots[l.Function]; ok && l.TargetID == d.id {
			s.Members[slot] = Occupant{LinkID: l.ID, ProgramID: l.ProgID}
		}
	}
	return s, nil
}
