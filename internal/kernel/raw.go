package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// LinkUpdateRaw sends a BPF_LINK_UPDATE as it is, nonsense too. It is for the
// conformance tests: [LinkUpdate] and [LinkUpdateAny] can't be wrong about the
// flag.
func LinkUpdateRaw(link FD, newProgFD, oldProgFD int, flags uint32) error {
	attr := linkUpdateAttr{
		linkFD:    uint32(link),
		newProgFD: uint32(newProgFD),
		flags:     flags,
		oldProgFD: uint32(oldProgFD),
	}
	_, err := bpf(unix.BPF_LINK_UPDATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}
