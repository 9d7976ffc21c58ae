// Package kernel is the door to bpf(2): every raw bpf call that Holdfast makes
// itself is here, and linters keep it so. Programs and maps of others are loaded
// with cilium/ebpf; links are not, because cilium/ebpf closes a link that the
// garbage collector finds unreachable, and closing its last descriptor
// detaches the program. A descriptor from this package is a plain number that
// only Close closes.
//
// Functions return the kernel's errno unwrapped, as a syscall.Errno: what an
// errno means depends on what was asked, so package xdp translates it, in one
// place. The layouts are those of include/uapi/linux/bpf.h; all of them work
// from Linux 5.10 on unless a comment says otherwise.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and constants of include/uapi/linux/bpf.h that x/sys/unix lacks a
// better name for.
const (
	attachXDP   = unix.BPF_XDP
	linkTypeXDP = unix.BPF_LINK_TYPE_XDP
	objNameLen  = 16 // BPF_OBJ_NAME_LEN
)

// FD is an open descriptor of a BPF object. The zero value is not valid.
// Nothing closes it but Close.
type FD int

// Close closes the descriptor. For the last descriptor or pin of a link this
// detaches its program, some milliseconds later.
func (fd FD) Close() error { return unix.Close(int(fd)) }

// Dup returns a second descriptor of the same object, close-on-exec, which the
// caller closes.
func (fd FD) Dup() (FD, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return FD(n), err
}

// bpf makes the call. Pointers inside attributes are unsafe.Pointer fields, so
// that they escape to the heap together with the attributes and stay put; this
// takes a 64-bit machine, where they have the width of the kernel's __u64.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

const _ = unsafe.Sizeof(uintptr(0)) - 8 // 64-bit only

type linkCreateAttr struct {
	progFD      uint32
	targetFD    uint32
	attachType  uint32
	flags       uint32
	targetBTFID uint32
	_           [44]byte
}

// LinkCreateXDP attaches the program to the interface of the calling thread's
// network namespace that has this index, and returns the link. flags are
// XDP_FLAGS_*_MODE. It only ever succeeds on an empty hook. Since Linux 5.9.
func LinkCreateXDP(progFD, ifindex int, flags uint32) (FD, error) {
	attr := linkCreateAttr{
		progFD:     uint32(progFD),
		targetFD:   uint32(ifindex),
		attachType: attachXDP,
		flags:      flags,
	}
	fd, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}

// LinkCreateExtension attaches an extension in the place of a function of the
// target, given by its type id in the target's BTF, and returns the link; 0 and
// 0 stand for the function that it was loaded for. The function is taken until
// the link ends: EBUSY. One extension can be attached in several places. Since
// Linux 5.10.
func LinkCreateExtension(progFD, targetFD int, function uint32) (FD, error) {
	attr := linkCreateAttr{progFD: uint32(progFD), targetFD: uint32(targetFD), targetBTFID: function}
	fd, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}

type linkUpdateAttr struct {
	linkFD    uint32
	newProgFD uint32
	flags     uint32
	oldProgFD uint32
}

// LinkUpdate replaces the link's program, but only while oldProgFD is the one
// it runs: the kernel answers EPERM otherwise. A link whose interface is gone
// answers ENOLINK. Since Linux 5.9.
func LinkUpdate(link FD, newProgFD, oldProgFD int) error {
	attr := linkUpdateAttr{
		linkFD:    uint32(link),
		newProgFD: uint32(newProgFD),
		flags:     unix.BPF_F_REPLACE,
		oldProgFD: uint32(oldProgFD),
	}
	_, err := bpf(unix.BPF_LINK_UPDATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// LinkUpdateAny replaces the link's program whatever it was. Since Linux 5.9.
func LinkUpdateAny(link FD, newProgFD int) error {
	attr := linkUpdateAttr{linkFD: uint32(link), newProgFD: uint32(newProgFD)}
	_, err := bpf(unix.BPF_LINK_UPDATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// LinkDetach detaches the link's program at once and leaves a defunct link
// behind, for everyone who holds it. It succeeds on a defunct link too. Since
// Linux 5.9.
func LinkDetach(link FD) error {
	attr := struct{ linkFD uint32 }{uint32(link)}
	_, err := bpf(unix.BPF_LINK_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// LinkInfo is what the kernel tells of an XDP link.
type LinkInfo struct {
	ID     uint32
	ProgID uint32
	// Ifindex is in the namespace where the interface is now, and 0 when the
	// link is defunct: detached by force, or its interface is gone. The kernel
	// does not say which namespace.
	Ifindex uint32
}

// ErrNotXDP says that a descriptor is no XDP link.
var ErrNotXDP = errors.New("not an XDP link")

// IsLink tells whether the descriptor is a link of some kind. BPF_OBJ_GET and a
// socket give descriptors of any kind, and BPF_OBJ_GET_INFO_BY_FD answers for
// each in another layout without saying which.
func IsLink(fd FD) bool {
	kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && (kind == "anon_inode:bpf_link" || kind == "anon_inode:bpf-link")
}

type infoAttr struct {
	fd   uint32
	size uint32
	info unsafe.Pointer
}

// XDPLinkInfo reads a link, or returns ErrNotXDP for one of another kind.
func XDPLinkInfo(link FD) (LinkInfo, error) {
	// struct bpf_link_info; XDP's part of the union starts with the ifindex.
	var raw struct {
		typ, id, progID uint32
		_               uint32
		ifindex         uint32
		_               [44]byte
	}
	if err := objInfo(int(link), unsafe.Pointer(&raw), unsafe.Sizeof(raw)); err != nil {
		return LinkInfo{}, err
	}
	if raw.typ != linkTypeXDP {
		return LinkInfo{}, ErrNotXDP
	}
	return LinkInfo{ID: raw.id, ProgID: raw.progID, Ifindex: raw.ifindex}, nil
}

// ErrNotExtension says that a descriptor is no link of an extension.
var ErrNotExtension = errors.New("not the link of an extension")

// ExtensionLink is what the kernel tells of the link of an extension.
type ExtensionLink struct {
	ID     uint32
	ProgID uint32
	// TargetID is the program one of whose functions it replaces, and Function
	// that function's type id in the program's BTF. Both are 0 before Linux
	// 5.13.
	TargetID, Function uint32
}

// ReadExtensionLink reads the link of an extension, or returns ErrNotExtension
// for whatever else the descriptor is.
func ReadExtensionLink(link FD) (ExtensionLink, error) {
	if !IsLink(link) {
		return ExtensionLink{}, ErrNotExtension
	}
	return extensionLink(link)
}

// extensionLink reads what is known to be a link of some kind.
func extensionLink(link FD) (ExtensionLink, error) {
	// struct bpf_link_info; the part for tracing, which extensions are a kind
	// of, starts with the attach type, which an extension has none of.
	var raw struct {
		typ, id, progID uint32
		_               uint32
		attachType      uint32
		targetObjID     uint32
		targetBTFID     uint32
		_               [36]byte
	}
	if err := objInfo(int(link), unsafe.Pointer(&raw), unsafe.Sizeof(raw)); err != nil {
		return ExtensionLink{}, err
	}
	if raw.typ != unix.BPF_LINK_TYPE_TRACING || raw.attachType != 0 {
		return ExtensionLink{}, ErrNotExtension
	}
	return ExtensionLink{ID: raw.id, ProgID: raw.progID, TargetID: raw.targetObjID, Function: raw.targetBTFID}, nil
}

func objInfo(fd int, info unsafe.Pointer, size uintptr) error {
	attr := infoAttr{fd: uint32(fd), size: uint32(size), info: info}
	_, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

type idAttr struct {
	id     uint32
	nextID uint32
	flags  uint32
}

// LinkByID opens a link. It needs CAP_SYS_ADMIN. While the descriptor is open
// it prolongs the link's life: read what is needed and close it.
func LinkByID(id uint32) (FD, error) {
	attr := idAttr{id: id}
	fd, err := bpf(unix.BPF_LINK_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}

// NextLinkID returns the smallest id above the one given, or ENOENT after the
// last. It needs CAP_SYS_ADMIN. Since Linux 5.8.
func NextLinkID(id uint32) (uint32, error) {
	return nextID(unix.BPF_LINK_GET_NEXT_ID, id)
}

// XDPLinks reads every XDP link of the machine, in all network namespaces, in
// the order of their ids. Links that go away meanwhile are left out.
func XDPLinks() ([]LinkInfo, error) { return links(XDPLinkInfo, ErrNotXDP) }

// ExtensionLinks reads the link of every extension on the machine, in the order
// of their ids. Links that go away meanwhile are left out.
func ExtensionLinks() ([]ExtensionLink, error) { return links(extensionLink, ErrNotExtension) }

// links reads the links that read does not say other is the matter with.
func links[T any](read func(FD) (T, error), other error) ([]T, error) {
	var found []T
	for id := uint32(0); ; {
		next, err := NextLinkID(id)
		if errors.Is(err, unix.ENOENT) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		id = next
		fd, err := LinkByID(id)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN) {
			// Gone already, or not settled yet: its creator has no
			// descriptor of it so far.
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := read(fd)
		fd.Close()
		if errors.Is(err, other) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, info)
	}
}

// IsMap tells whether the descriptor is a map, see [IsLink].
func IsMap(fd FD) bool {
	kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && kind == "anon_inode:bpf-map"
}

// ErrNotMap says that a descriptor is no map.
var ErrNotMap = errors.New("not a map")

// MapID reads the id of a map, or returns ErrNotMap.
func MapID(fd FD) (uint32, error) {
	if !IsMap(fd) {
		return 0, ErrNotMap
	}
	var raw struct{ typ, id uint32 } // the beginning of struct bpf_map_info
	err := objInfo(int(fd), unsafe.Pointer(&raw), unsafe.Sizeof(raw))
	return raw.id, err
}

// MapExists tells whether anybody has the map of that id. Unlike opening it, that
// does not prolong its life. It needs CAP_SYS_ADMIN.
func MapExists(id uint32) (bool, error) {
	next, err := NextMapID(id - 1)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return next == id, err
}

// NextMapID is [NextLinkID] for maps.
func NextMapID(id uint32) (uint32, error) { return nextID(unix.BPF_MAP_GET_NEXT_ID, id) }

// NextProgramID is [NextLinkID] for programs.
func NextProgramID(id uint32) (uint32, error) { return nextID(unix.BPF_PROG_GET_NEXT_ID, id) }

func nextID(cmd int, id uint32) (uint32, error) {
	attr := idAttr{id: id}
	_, err := bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return attr.nextID, err
}

// MapMemory maps the value of an array of one element, made with
// BPF_F_MMAPABLE, into memory, for reading and writing. What is stored there is
// what programs read. It stays mapped, and the map alive, until UnmapMemory.
// Since Linux 5.5.
func MapMemory(fd FD, size int) ([]byte, error) {
	return unix.Mmap(int(fd), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// UnmapMemory ends what MapMemory began.
func UnmapMemory(memory []byte) error { return unix.Munmap(memory) }

// ProgramByID opens a program; the descriptor also serves as an expectation.
// It needs CAP_SYS_ADMIN.
func ProgramByID(id uint32) (FD, error) {
	attr := idAttr{id: id}
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}

// ProgramInfo is what the kernel tells of a program.
type ProgramInfo struct {
	Type uint32
	ID   uint32
	Tag  [8]byte
	// Name has at most 15 bytes; BTF may know a longer one.
	Name string
	// LoadTime is in nanoseconds since boot (CLOCK_BOOTTIME).
	LoadTime uint64
	UID      uint32
	NumMaps  uint32
	// MapIDs are two of its maps, 0 where there are less.
	MapIDs [2]uint32
	// Ifindex is the device that an offloaded program is bound to.
	Ifindex uint32
	// BTFID is its type information, 0 if it has none, and Function the type
	// id there of its main function.
	BTFID, Function uint32
	// RunTime, in nanoseconds, and RunCount grow while statistics are switched
	// on, see [EnableRunStats], and only where the kernel itself runs the
	// program: not with what an extension does that another program calls.
	RunTime, RunCount uint64
}

// IsExtension tells whether the program is one of type BPF_PROG_TYPE_EXT.
func (p ProgramInfo) IsExtension() bool { return p.Type == unix.BPF_PROG_TYPE_EXT }

// IsProgram tells whether the descriptor is a program, see [IsLink].
func IsProgram(fd FD) bool {
	kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && kind == "anon_inode:bpf-prog"
}

// ReadProgram reads a program by its descriptor.
func ReadProgram(fd FD) (ProgramInfo, error) {
	// struct bpf_func_info.
	var function struct{ offset, typeID uint32 }
	var mapIDs [2]uint32
	// struct bpf_prog_info up to run_cnt. What asks for two maps and one function
	// is told how many there are.
	raw := struct {
		typ, id         uint32
		tag             [8]byte
		jited, xlated   uint32
		jitedP, xlatedP uint64
		loadTime        uint64
		uid             uint32
		numMaps         uint32
		mapIDs          unsafe.Pointer
		name            [objNameLen]byte
		ifindex         uint32
		gpl             uint32
		netnsDev        uint64
		netnsIno        uint64
		ksyms, funcLens uint32
		ksymsP          uint64
		funcLensP       uint64
		btfID           uint32
		functionSize    uint32
		functions       unsafe.Pointer
		numFunctions    uint32
		numLines        uint32
		lines, jitLines uint64
		numJitLines     uint32
		lineSizes       [2]uint32
		numTags         uint32
		tags            uint64
		runTime, runs   uint64
	}{
		numMaps: uint32(len(mapIDs)), mapIDs: unsafe.Pointer(&mapIDs),
		numFunctions: 1, functionSize: uint32(unsafe.Sizeof(function)), functions: unsafe.Pointer(&function),
	}
	if err := objInfo(int(fd), unsafe.Pointer(&raw), unsafe.Sizeof(raw)); err != nil {
		return ProgramInfo{}, err
	}
	return ProgramInfo{
		Type: raw.typ, ID: raw.id, Tag: raw.tag,
		Name:     unix.ByteSliceToString(raw.name[:]),
		LoadTime: raw.loadTime, UID: raw.uid, NumMaps: raw.numMaps, MapIDs: mapIDs, Ifindex: raw.ifindex,
		BTFID: raw.btfID, Function: function.typeID, RunTime: raw.runTime, RunCount: raw.runs,
	}, nil
}

type objAttr struct {
	path  *byte
	fd    uint32
	flags uint32
}

// Pin gives the object a name in a bpffs: EEXIST where the path is taken,
// EPERM outside a bpffs.
func Pin(fd FD, path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	attr := objAttr{path: p, fd: uint32(fd)}
	_, err = bpf(unix.BPF_OBJ_PIN, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// OpenPin opens a pinned object, of whatever kind, for reading and writing.
// The caller closes it.
func OpenPin(path string) (FD, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	attr := objAttr{path: p}
	fd, err := bpf(unix.BPF_OBJ_GET, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}

// DeviceBound tells whether the program was loaded for one device (or as an
// expected attach type that runs on none), which the kernel does not say
// anywhere else. BPF_PROG_TEST_RUN refuses such a program with EINVAL before it
// reads its arguments, and others with EFAULT when it does, because the packet
// lies at an address that nobody has: the program never runs. One that is
// offloaded can't be run at all. Any other answer is the error.
func DeviceBound(progFD int) (bool, error) {
	attr := struct {
		progFD, retval          uint32
		dataSizeIn, dataSizeOut uint32
		dataIn, dataOut         uint64
		repeat, duration        uint32
		ctxSizeIn, ctxSizeOut   uint32
		ctxIn, ctxOut           uint64
		flags, cpu, batch       uint32
		_                       uint32
	}{progFD: uint32(progFD), dataSizeIn: 64, dataIn: 1}
	_, err := bpf(unix.BPF_PROG_TEST_RUN, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	switch {
	case errors.Is(err, unix.EFAULT):
		return false, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, eNOTSUPP):
		return true, nil
	}
	return false, err
}

// EnableRunStats switches on that the kernel counts how often each program runs,
// and for how long, until the descriptor is closed, by the end of the process if
// not before; several can be open. Every program on the machine takes two readings
// of the clock longer meanwhile. It needs CAP_SYS_ADMIN. Since Linux 5.8.
func EnableRunStats() (FD, error) {
	attr := struct{ typ uint32 }{0} // BPF_STATS_RUN_TIME
	fd, err := bpf(unix.BPF_ENABLE_STATS, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}

// eNOTSUPP is the kernel's internal ENOTSUPP, which bpf(2) lets escape.
const eNOTSUPP = unix.Errno(524)

// AwaitGracePeriod returns once every packet that was in a program when it was
// called has left it: it waits for an RCU grace period, by membarrier(2), which
// does nothing else. What such a packet may still need is then free to go. It
// takes some milliseconds. EINVAL where the kernel runs with nohz_full.
func AwaitGracePeriod() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL

// AttachTracing attaches a program of type BPF_PROG_TYPE_TRACING to the function
// that it was loaded for, and returns the link, which is all that holds it there.
// Since Linux 5.5; what it can be attached to depends on the kernel.
func AttachTracing(progFD int) (FD, error) {
	attr := struct {
		name   uint64
		progFD uint32
		_      uint32
	}{progFD: uint32(progFD)}
	fd, err := bpf(unix.BPF_RAW_TRACEPOINT_OPEN, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}
