package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// LinkCreateExtension attaches a program of type BPF_PROG_TYPE_EXT in place of
// the function that it was loaded for, and returns the link: when the last
// descriptor of that is closed, the function is itself again. Since Linux 5.10.
func LinkCreateExtension(progFD int) (FD, error) {
	attr := linkCreateAttr{progFD: uint32(progFD)}
	fd, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return FD(fd), err
}
