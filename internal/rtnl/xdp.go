package rtnl

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// XDPRequest is an IFLA_XDP attribute, as it is sent. The kernel ignores an
// expectation without XDP_FLAGS_REPLACE, so only SetXDP and ReplaceXDP, which
// can't get that wrong, are for others than the conformance tests.
type XDPRequest struct {
	FD       int32
	Flags    uint32
	Expected *int32
}

// SetXDP attaches the program, whatever is there in the same mode, or detaches
// with fd -1. modeFlags are XDP_FLAGS_*_MODE; none lets the kernel choose.
func (c *Conn) SetXDP(index, fd int, modeFlags uint32) error {
	return c.SendXDP(index, XDPRequest{FD: int32(fd), Flags: modeFlags})
}

// ReplaceXDP attaches the program, or detaches with fd -1, but only while the
// program of descriptor expected is attached in that mode, or none where
// expected is -1: the kernel answers EEXIST otherwise. Since Linux 5.7.
func (c *Conn) ReplaceXDP(index, fd, expected int, modeFlags uint32) error {
	e := int32(expected)
	return c.SendXDP(index, XDPRequest{FD: int32(fd), Flags: modeFlags | unix.XDP_FLAGS_REPLACE, Expected: &e})
}

// SendXDP sends a request as it is, nonsense too.
//
// It is the one message that is not left to the netlink library, which encodes,
// copies and decodes for as long as the kernel takes to replace a program. What
// is not a plain acknowledgement is.
func (c *Conn) SendXDP(index int, r XDPRequest) error {
	c.exchange.Lock()
	defer c.exchange.Unlock()
	if err := c.socket.send(c.xdp.encode(index, r)); err != nil {
		return err
	}
	answer, err := c.socket.receive()
	if err != nil || c.xdp.acknowledged(answer) {
		return err
	}
	c.socket.unread = answer
	if _, err := c.route.Receive(); err != nil {
		return translate(err)
	}
	return errors.New("netlink: an answer that is no acknowledgement")
}

// xdpRequest is an RTM_SETLINK message with an IFLA_XDP attribute and nothing
// else, which is encoded in place.
type xdpRequest struct {
	port     uint32
	sequence uint32
	buffer   [xdpAttributes + 3*attributeSize]byte
}

const (
	// Where the parts of the message begin.
	xdpNest       = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	xdpAttributes = xdpNest + unix.SizeofNlAttr

	attributeSize = unix.SizeofNlAttr + 4
)

// encode makes the next message. It is good until the one after.
func (x *xdpRequest) encode(index int, r XDPRequest) []byte {
	x.sequence++
	b := x.buffer[:xdpAttributes]
	add := func(typ uint16, value uint32) {
		b = putAttribute(b, attributeSize, typ)
		b = binary.NativeEndian.AppendUint32(b, value)
	}
	add(unix.IFLA_XDP_FD, uint32(r.FD))
	if r.Flags != 0 {
		add(unix.IFLA_XDP_FLAGS, r.Flags)
	}
	if r.Expected != nil {
		add(unix.IFLA_XDP_EXPECTED_FD, uint32(*r.Expected))
	}
	putAttribute(b[:xdpNest], uint16(len(b)-xdpNest), unix.IFLA_XDP|unix.NLA_F_NESTED)

	ne := binary.NativeEndian
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], unix.RTM_SETLINK)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	ne.PutUint32(b[8:], x.sequence)
	ne.PutUint32(b[12:], x.port)
	ne.PutUint32(b[unix.SizeofNlMsghdr+4:], uint32(index)) // all else of ifinfomsg is zero
	return b
}

// putAttribute appends the head of an attribute of that size, head included.
func putAttribute(b []byte, size, typ uint16) []byte {
	b = binary.NativeEndian.AppendUint16(b, size)
	return binary.NativeEndian.AppendUint16(b, typ)
}

// acknowledged tells whether the datagram is an NLMSG_ERROR without an error
// for the last message.
func (x *xdpRequest) acknowledged(b []byte) bool {
	ne := binary.NativeEndian
	return len(b) >= unix.SizeofNlMsghdr+4 &&
		ne.Uint16(b[4:]) == unix.NLMSG_ERROR &&
		ne.Uint32(b[8:]) == x.sequence &&
		ne.Uint32(b[unix.SizeofNlMsghdr:]) == 0
}
