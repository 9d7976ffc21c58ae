package libxdp

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// The asm/ headers lie in a directory named after the machine; clang ignores
// those that do not exist.
//
//go:generate -command bpf2go go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cflags "-O2 -mcpu=v1 -Wall -Wextra -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu"
//go:generate bpf2go dispatcherV2 ../../bpf/dispatcher.c -- -DVERSION=2
//go:generate bpf2go dispatcherV3 ../../bpf/dispatcher.c -- -DVERSION=3

// specs are the dispatchers, parsed when they are first needed. What is loaded
// is a copy.
var specs = map[int]func() (*ebpf.CollectionSpec, error){
	2: sync.OnceValues(loadDispatcherV2),
	3: sync.OnceValues(loadDispatcherV3),
}

// dispatcher is a loaded dispatcher that is not attached yet.
type dispatcher struct {
	program *ebpf.Program
	id      uint32
	conf    conf
	// functions are the type ids of the functions that the members replace.
	functions []uint32
}

func (d *dispatcher) close() { d.program.Close() }

// errNoTypes says that the kernel took the dispatcher, but not its BTF.
var errNoTypes = errors.New("the kernel keeps no type information (BTF) of programs")

// loadDispatcher loads a dispatcher, in the network namespace of the calling
// thread if it is bound to the device of that index. Where the kernel knows no
// packets of several buffers (before Linux 5.18) it is loaded without.
func loadDispatcher(c conf, index int) (*dispatcher, error) {
	d, err := tryDispatcher(c, index)
	if c.frags && errors.Is(err, unix.EINVAL) {
		c.frags = false
		return tryDispatcher(c, index)
	}
	return d, err
}

func tryDispatcher(c conf, index int) (*dispatcher, error) {
	parsed, err := specs[c.version]()
	if err != nil {
		return nil, err
	}
	spec := &ebpf.CollectionSpec{
		Types: parsed.Types, ByteOrder: parsed.ByteOrder,
		Maps:     map[string]*ebpf.MapSpec{},
		Programs: map[string]*ebpf.ProgramSpec{},
	}
	const section = ".rodata"
	data := parsed.Maps[section].Copy()
	data.Contents = []ebpf.MapKV{{Key: uint32(0), Value: c.encode()}}
	spec.Maps[section] = data
	program := parsed.Programs[dispatcherName].Copy()
	if c.frags {
		program.Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	if c.deviceBound {
		program.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
		program.Ifindex = uint32(index)
	}
	spec.Programs[dispatcherName] = program
	loaded, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	d := &dispatcher{program: loaded.DetachProgram(dispatcherName), conf: c}
	loaded.Close()
	if err := d.readTypes(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// readTypes reads what the kernel knows the dispatcher's functions by.
func (d *dispatcher) readTypes() error {
	info, err := d.program.Info()
	if err != nil {
		return err
	}
	id, ok := info.ID()
	if !ok {
		return errNoTypes
	}
	d.id = uint32(id)
	types, ok := info.BTFID()
	if !ok {
		return errNoTypes
	}
	handle, err := btf.NewHandleFromID(types)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTypes, err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTypes, err)
	}
	for slot := range d.conf.slots {
		f, err := functionID(spec, d.function(slot))
		if err != nil {
			return fmt.Errorf("%w: %w", errNoTypes, err)
		}
		d.functions = append(d.functions, f)
	}
	return nil
}

// function is the function that the member in that slot takes the place of. The
// member of a chain of one takes that of the whole dispatcher.
func (d *dispatcher) function(slot int) string {
	if len(d.conf.slots) == 1 {
		return dispatcherName
	}
	return slotFunction(slot)
}
