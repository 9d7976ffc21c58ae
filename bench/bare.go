package main

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// bareNetlink is what a program would do that attaches by netlink and nothing
// else: one message out, one answer in. internal/rtnl goes through a netlink
// library, which is part of what the comparison is about.
type bareNetlink struct{ socket int }

// dialBare opens a socket in the calling thread's network namespace.
func dialBare() (bareNetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return bareNetlink{-1}, fmt.Errorf("open a netlink socket: %w", err)
	}
	// An answer without the question in it.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		unix.Close(fd)
		return bareNetlink{-1}, err
	}
	return bareNetlink{fd}, nil
}

func (b bareNetlink) close() { unix.Close(b.socket) }

var kernelAddress = &unix.SockaddrNetlink{Family: unix.AF_NETLINK}

// replace sends the RTM_SETLINK that attaches program fd in native mode where
// expected is attached; -1 is to detach, or to expect an empty hook.
func (b bareNetlink) replace(index, fd, expected int) error {
	const length = 16 + 16 + 4 + 3*8
	var m [length]byte
	ne := binary.NativeEndian
	ne.PutUint32(m[0:], length)
	ne.PutUint16(m[4:], unix.RTM_SETLINK)
	ne.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	ne.PutUint32(m[16+4:], uint32(index))
	attr := func(at int, size, typ uint16, value uint32) {
		ne.PutUint16(m[at:], size)
		ne.PutUint16(m[at+2:], typ)
		if size == 8 {
			ne.PutUint32(m[at+4:], value)
		}
	}
	attr(32, 4+3*8, unix.IFLA_XDP|unix.NLA_F_NESTED, 0)
	attr(36, 8, unix.IFLA_XDP_FD, uint32(int32(fd)))
	attr(44, 8, unix.IFLA_XDP_FLAGS, unix.XDP_FLAGS_DRV_MODE|unix.XDP_FLAGS_REPLACE)
	attr(52, 8, unix.IFLA_XDP_EXPECTED_FD, uint32(int32(expected)))
	if err := unix.Sendto(b.socket, m[:], 0, kernelAddress); err != nil {
		return err
	}
	var answer [256]byte
	n, _, err := unix.Recvfrom(b.socket, answer[:], 0)
	if err != nil {
		return err
	}
	if n < 20 || ne.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink: an answer of %d bytes that is no acknowledgement", n)
	}
	if errno := int32(ne.Uint32(answer[16:])); errno != 0 {
		return syscall.Errno(-errno)
	}
	return nil
}
