package libxdp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

// The asm/ headers lie in a directory named after the machine; clang ignores
// those that do not exist.
//
//go:generate -command bpf2go go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cflags "-O2 -mcpu=v1 -Wall -Wextra -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu"
//go:generate bpf2go dispatcherV2 ../../bpf/dispatcher.c -- -DVERSION=2
//go:generate bpf2go dispatcherV3 ../../bpf/dispatcher.c -- -DVERSION=3

// images are the dispatchers, made when they are first needed.
var images = map[int]func() (*image, error){
	2: sync.OnceValues(func() (*image, error) { return makeImage(loadDispatcherV2()) }),
	3: sync.OnceValues(func() (*image, error) { return makeImage(loadDispatcherV3()) }),
}

// image is a dispatcher as the kernel takes it, but for its configuration: what
// is done for every change of a chain is to be done once.
type image struct {
	instructions []byte
	confLoads    []int // where instructions want the descriptor of the configuration
	license      []byte
	types        []byte // BTF
	functions    []byte // a struct bpf_func_info each
	typeIDs      map[string]uint32
}

func makeImage(parsed *ebpf.CollectionSpec, err error) (*image, error) {
	if err != nil {
		return nil, err
	}
	program := parsed.Programs[dispatcherName]
	i := &image{license: append([]byte(program.License), 0), typeIDs: map[string]uint32{}}
	var types btf.Builder
	if i.functions, _, err = btf.MarshalExtInfos(program.Instructions, &types); err != nil {
		return nil, err
	}
	for it := program.Instructions.Iterate(); it.Next(); {
		if f := btf.FuncMetadata(it.Ins); f != nil {
			id, err := types.Add(f)
			if err != nil {
				return nil, err
			}
			i.typeIDs[f.Name] = uint32(id)
		}
		if it.Ins.IsLoadFromMap() {
			const immediate = 4
			i.confLoads = append(i.confLoads, int(it.Offset.Bytes())+immediate)
		}
	}
	if i.types, err = types.Marshal(nil, &btf.MarshalOptions{Order: parsed.ByteOrder}); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = slices.Clone(program.Instructions).Marshal(&b, parsed.ByteOrder)
	i.instructions = b.Bytes()
	return i, err
}

// with returns the instructions for the configuration of that descriptor.
func (i *image) with(conf kernel.FD) []byte {
	b := slices.Clone(i.instructions)
	for _, at := range i.confLoads {
		binary.NativeEndian.PutUint32(b[at:], uint32(conf))
	}
	return b
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

// errNoTypes says that the kernel did not take the dispatcher's BTF, by which
// its functions are known.
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
	image, err := images[c.version]()
	if err != nil {
		return nil, err
	}
	data, err := kernel.MakeConstant(".rodata", c.encode())
	if err != nil {
		return nil, err
	}
	defer data.Close()
	types, err := kernel.LoadTypes(image.types)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTypes, err)
	}
	defer types.Close()
	p := kernel.XDPProgram{
		Name: dispatcherName, Instructions: image.with(data), License: image.license,
		Types: types, Functions: image.functions,
	}
	if c.frags {
		p.Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	if c.deviceBound {
		p.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
		p.Ifindex = uint32(index)
	}
	fd, err := kernel.LoadProgram(p)
	if err != nil {
		return nil, err
	}
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		fd.Close()
		return nil, err
	}
	d := &dispatcher{id: info.ID, conf: c}
	if d.program, err = ebpf.NewProgramFromFD(int(fd)); err != nil {
		return nil, err
	}
	for slot := range c.slots {
		d.functions = append(d.functions, image.typeIDs[d.function(slot)])
	}
	return d, nil
}

// function is the function that the member in that slot takes the place of. The
// member of a chain of one takes that of the whole dispatcher.
func (d *dispatcher) function(slot int) string {
	if len(d.conf.slots) == 1 {
		return dispatcherName
	}
	return slotFunction(slot)
}
