package libxdp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// dispatcherName is what tells a dispatcher from other programs.
const dispatcherName = "xdp_dispatcher"

// snapshot is a chain with its programs open, so that they can be attached
// again. The caller closes it.
type snapshot struct {
	Chain
	conf    conf
	members []openedMember
	program kernel.FD // what is attached; -1 for nothing
	// otherMode is what keeps an empty hook from being attached to: a program
	// at the same interface in another mode.
	otherMode *xdp.Attachment
}

func (s *snapshot) close() {
	closeMembers(s.members)
	if s.program >= 0 {
		s.program.Close()
	}
}

// attempts bounds how often something is read or tried again because others
// changed it meanwhile.
const attempts = 64

// read reads the chain at the hook. Others may change it between the calls that
// takes: then it is read anew.
func (c *Chains) read(ctx context.Context, op string, h *xdp.Hook) (*snapshot, error) {
	for n := 1; ; n++ {
		s, settled, err := c.readOnce(ctx, op, h)
		if err != nil {
			return nil, err
		}
		if settled || n == attempts {
			return s, nil
		}
		s.close()
		if err := pause(ctx, min(time.Duration(n)*time.Millisecond, 20*time.Millisecond)); err != nil {
			return nil, err
		}
	}
}

// readOnce reads the chain. It is not settled if what was read may not fit
// together because the chain was changed meanwhile.
func (c *Chains) readOnce(ctx context.Context, op string, h *xdp.Hook) (s *snapshot, settled bool, err error) {
	state, err := h.Query()
	if err != nil {
		return nil, false, err
	}
	s = &snapshot{Chain: Chain{Kind: Empty, Mode: h.Mode()}, program: -1}
	a := state.At(h.Mode())
	if a == nil {
		s.otherMode = state.At(xdp.Auto)
		return s, true, nil
	}
	s.Kind, s.Mode, s.Attachment = Single, a.Mode, a

	fd, err := kernel.ProgramByID(a.Program.ID)
	switch {
	case errors.Is(err, unix.ENOENT):
		s.Problem = "the program is no longer loaded"
		return s, false, nil
	case errors.Is(err, unix.EPERM):
		return nil, false, &xdp.Error{
			Op: op, Hook: h.String(), Err: xdp.ErrPermission, Errno: unix.EPERM,
			Detail: fmt.Sprintf("program %d is attached, and may not be looked into", a.Program.ID),
			Hint:   "reading a chain needs CAP_SYS_ADMIN",
		}
	case err != nil:
		return nil, false, &xdp.Error{Op: op, Hook: h.String(), Err: xdp.ErrUnexpected, Detail: err.Error()}
	}
	s.program = fd
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		s.close()
		return nil, false, &xdp.Error{Op: op, Hook: h.String(), Err: xdp.ErrUnexpected, Detail: err.Error()}
	}
	if info.Name != dispatcherName || info.BTFID == 0 {
		return s, true, nil
	}
	s.Kind, s.Dispatcher = Dispatcher, a.Program
	var problems []string
	settled, err = c.readDispatcher(ctx, h, s, info)
	if errors.Is(err, ErrLockTimeout) || errors.Is(err, context.Canceled) || errors.Is(err, fs.ErrPermission) {
		s.close()
		return nil, false, c.lockError(op, h, err)
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	if a.Held == xdp.HeldByLink {
		xdp.FindHolders(a)
		problems = append(problems, "a link holds the hook, and only its holder can change what is there: "+a.String())
	}
	s.Problem = strings.Join(problems, "; ")
	return s, settled, nil
}

// readDispatcher fills in what the dispatcher and the pins tell. Its error is
// why they don't, for people.
func (c *Chains) readDispatcher(ctx context.Context, h *xdp.Hook, s *snapshot, info kernel.ProgramInfo) (settled bool, err error) {
	types, err := typesOf(info.BTFID)
	if err != nil {
		return true, fmt.Errorf("the dispatcher's type information can't be read: %w", err)
	}
	s.MadeBy = madeBy(types)
	data, err := readOnlyData(info)
	if err != nil {
		return true, fmt.Errorf("the dispatcher's configuration can't be read: %w", err)
	}
	version, ok := versionOf(data)
	if !ok {
		if version, ok = versionInTypes(types); !ok {
			return true, errors.New("the dispatcher tells no version")
		}
	}
	s.Version = version
	if s.conf, err = decodeConf(data, version); err != nil {
		return true, err
	}
	s.Frags, s.DeviceBound = s.conf.frags, s.conf.deviceBound

	functions, err := slotFunctions(types, len(s.conf.slots))
	if err != nil {
		return true, err
	}
	if c.root == nil {
		return true, fmt.Errorf("its members are told by pins, and no bpffs is mounted at %s", c.where)
	}
	l, err := c.lock(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, fmt.Errorf("its members are told by pins, and there is no %s in the bpffs at %s", pinsDir, c.where)
	case err != nil:
		return true, err
	}
	defer l.unlock()
	s.members, err = l.openMembers(h.Index(), info.ID, functions)
	if err != nil {
		// Nobody changes pins as long as the lock is held: if the dispatcher
		// is still there they are missing for good.
		state, queryErr := h.Query()
		a := state.At(h.Mode())
		return queryErr == nil && a != nil && a.Program.ID == info.ID, err
	}
	for i, m := range s.members {
		s.Members = append(s.Members, Member{
			Slot: i, Name: fullName(m.info),
			Priority: s.conf.slots[i].priority, ProceedOn: s.conf.slots[i].proceedOn,
			Frags: s.conf.slots[i].frags, DeviceBound: s.conf.slots[i].deviceBound,
			Program: xdp.LookUpProgram(m.info.ID),
		})
	}
	return true, nil
}

// typesOf reads the BTF of that id.
func typesOf(id uint32) (*btf.Spec, error) {
	h, err := btf.NewHandleFromID(btf.ID(id))
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.Spec(nil)
}

// versionInTypes reads the version that the dispatcher's BTF tells: in the
// section xdp_metadata, the number of elements of an array that a variable points
// to.
func versionInTypes(types *btf.Spec) (int, bool) {
	var section *btf.Datasec
	if types.TypeByName("xdp_metadata", &section) != nil {
		return 0, false
	}
	for _, v := range section.Vars {
		variable, ok := v.Type.(*btf.Var)
		if !ok || variable.Name != "dispatcher_version" {
			continue
		}
		pointer, ok := btf.UnderlyingType(variable.Type).(*btf.Pointer)
		if !ok {
			return 0, false
		}
		array, ok := btf.UnderlyingType(pointer.Target).(*btf.Array)
		if !ok {
			return 0, false
		}
		return int(array.Nelems), true
	}
	return 0, false
}

// madeBy tells whose dispatcher it is, by the name that bpf/dispatcher.c gives
// to the parameter of its main function. The program's tag would tell one build
// of it only.
func madeBy(types *btf.Spec) string {
	var f *btf.Func
	if types.TypeByName(dispatcherName, &f) != nil {
		return MadeByOther
	}
	if proto, ok := f.Type.(*btf.FuncProto); ok && len(proto.Params) == 1 && proto.Params[0].Name == "holdfast_ctx" {
		return MadeByHoldfast
	}
	return MadeByOther
}

// slotFunctions are the type ids of the functions where the member of each slot
// may be: its own, and for a chain of one the whole dispatcher.
func slotFunctions(types *btf.Spec, slots int) ([][]uint32, error) {
	var functions [][]uint32
	for slot := range slots {
		names := []string{slotFunction(slot)}
		if slots == 1 {
			names = append(names, dispatcherName)
		}
		var ids []uint32
		for _, name := range names {
			id, err := functionID(types, name)
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
		functions = append(functions, ids)
	}
	return functions, nil
}

func slotFunction(slot int) string { return fmt.Sprintf("prog%d", slot) }

func functionID(types *btf.Spec, name string) (uint32, error) {
	var f *btf.Func
	if err := types.TypeByName(name, &f); err != nil {
		return 0, fmt.Errorf("the dispatcher has no function %s: %w", name, err)
	}
	id, err := types.TypeID(f)
	return uint32(id), err
}

// fullName is the name of the program's function, of which the kernel keeps 15
// bytes and BTF all.
func fullName(p kernel.ProgramInfo) string {
	if len(p.Name) < unix.BPF_OBJ_NAME_LEN-1 || p.BTFID == 0 {
		return p.Name
	}
	types, err := typesOf(p.BTFID)
	if err != nil {
		return p.Name
	}
	t, err := types.TypeByID(btf.TypeID(p.Function))
	if err != nil || !strings.HasPrefix(t.TypeName(), p.Name) {
		return p.Name
	}
	return t.TypeName()
}

// readOnlyData reads the only map of a dispatcher, which must look as the
// protocol has it.
func readOnlyData(p kernel.ProgramInfo) ([]byte, error) {
	if p.NumMaps != 1 {
		return nil, fmt.Errorf("it has %d maps instead of one", p.NumMaps)
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(p.MapIDs[0]))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	const largest = 4096
	switch {
	case m.Type() != ebpf.Array || m.KeySize() != 4 || m.MaxEntries() != 1:
		return nil, errors.New("its map is no array of one element")
	case m.Flags()&unix.BPF_F_RDONLY_PROG == 0:
		return nil, errors.New("its map is not read-only")
	case m.ValueSize() < sizeV1 || m.ValueSize() > largest:
		return nil, fmt.Errorf("its map has a value of %d bytes", m.ValueSize())
	}
	data, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, err
	}
	return data, nil
}

// pause waits, or returns why not.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
