package kernel

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is loaded here is what Holdfast brings itself and loads again and again;
// its bytes are made once. Programs of others take cilium/ebpf, which adapts
// them to the kernel and explains what the verifier does not like.

type btfLoadAttr struct {
	btf, log           unsafe.Pointer
	size, logSize      uint32
	logLevel, trueSize uint32
	flags, tokenFD     uint32
}

// LoadTypes loads BTF and returns it, for [LoadProgram].
func LoadTypes(types []byte) (FD, error) {
	attr := btfLoadAttr{btf: unsafe.Pointer(unsafe.SliceData(types)), size: uint32(len(types))}
	// Without what came after Linux 5.10: E2BIG for more than the kernel knows.
	fd, err := bpf(unix.BPF_BTF_LOAD, unsafe.Pointer(&attr), unsafe.Offsetof(attr.trueSize))
	return FD(fd), err
}

type mapCreateAttr struct {
	typ                            uint32
	keySize, valueSize, maxEntries uint32
	flags                          uint32
	innerFD, numaNode              uint32
	name                           [objNameLen]byte
}

type mapElementAttr struct {
	fd         uint32
	_          uint32
	key, value unsafe.Pointer
	flags      uint64
}

// MakeConstant makes an array of one element that nobody can write to any more:
// the verifier takes its bytes for constants.
func MakeConstant(name string, value []byte) (FD, error) {
	create := mapCreateAttr{
		typ: unix.BPF_MAP_TYPE_ARRAY, keySize: 4, valueSize: uint32(len(value)), maxEntries: 1,
		flags: unix.BPF_F_RDONLY_PROG,
	}
	copy(create.name[:objNameLen-1], name)
	n, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if err != nil {
		return -1, err
	}
	fd := FD(n)
	var key uint32
	update := mapElementAttr{fd: uint32(fd), key: unsafe.Pointer(&key), value: unsafe.Pointer(unsafe.SliceData(value))}
	_, err = bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&update), unsafe.Sizeof(update))
	if err == nil {
		freeze := struct{ fd uint32 }{uint32(fd)}
		_, err = bpf(unix.BPF_MAP_FREEZE, unsafe.Pointer(&freeze), unsafe.Sizeof(freeze))
	}
	if err != nil {
		fd.Close()
		return -1, err
	}
	return fd, nil
}

// XDPProgram is an XDP program as the kernel takes it.
type XDPProgram struct {
	Name string
	// Instructions have the descriptors of maps in them, and License ends with
	// a zero.
	Instructions, License []byte
	// Types is the BTF, and Functions what it knows the functions by: of each a
	// struct bpf_func_info.
	Types     FD
	Functions []byte
	// Flags are BPF_F_*, and Ifindex is the device that it is bound to, in the
	// network namespace of the calling thread; 0 for none.
	Flags, Ifindex uint32
}

type progLoadAttr struct {
	typ, count            uint32
	instructions, license unsafe.Pointer
	logLevel, logSize     uint32
	log                   unsafe.Pointer
	version, flags        uint32
	name                  [objNameLen]byte
	ifindex, attachType   uint32
	types, functionSize   uint32
	functions             unsafe.Pointer
	functionCount, _      uint32
}

// LoadProgram loads the program, with expected attach type BPF_XDP, and returns
// it.
func LoadProgram(p XDPProgram) (FD, error) {
	const instructionSize, functionSize = 8, 8
	attr := progLoadAttr{
		typ:          unix.BPF_PROG_TYPE_XDP,
		count:        uint32(len(p.Instructions) / instructionSize),
		instructions: unsafe.Pointer(unsafe.SliceData(p.Instructions)),
		license:      unsafe.Pointer(unsafe.SliceData(p.License)),
		flags:        p.Flags, ifindex: p.Ifindex, attachType: attachXDP,
		types: uint32(p.Types), functionSize: functionSize,
		functions:     unsafe.Pointer(unsafe.SliceData(p.Functions)),
		functionCount: uint32(len(p.Functions) / functionSize),
	}
	copy(attr.name[:objNameLen-1], p.Name)
	var fd int
	var err error
	// The verifier gives up with EAGAIN when a signal comes, such as those that
	// Go sends to its own threads.
	for range 30 {
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return FD(fd), err
}
