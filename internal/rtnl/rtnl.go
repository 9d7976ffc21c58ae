// Package rtnl is the door to netlink: it reads interfaces, and attaches and
// detaches XDP programs by RTM_SETLINK. It is the only package that imports a
// netlink library.
//
// vishvananda/netlink cannot send IFLA_XDP_EXPECTED_FD, so messages are built
// on mdlayher/netlink, which also keeps the kernel's extended acknowledgement:
// the sentence that says why.
package rtnl

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Error is a refusal by the kernel.
type Error struct {
	Errno syscall.Errno
	// Extack is the kernel's own sentence, often empty.
	Extack string
}

func (e *Error) Error() string {
	if e.Extack == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%s (%s)", e.Errno, e.Extack)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

func translate(err error) error {
	var op *netlink.OpError
	if err == nil || !errors.As(err, &op) {
		return err
	}
	var errno syscall.Errno
	if !errors.As(op, &errno) {
		return err
	}
	return &Error{Errno: errno, Extack: op.Message}
}

// Conn talks to the network stack of one network namespace, for as long as it
// is open. It can be used from several goroutines.
type Conn struct {
	// exchange is held from a request to its last answer.
	exchange sync.Mutex
	socket   *socket
	route    *netlink.Conn // through the socket
	xdp      xdpRequest
}

// Dial connects to the network namespace of the descriptor, or to the calling
// thread's where it is negative. The caller closes the connection.
func Dial(netns int) (*Conn, error) {
	socket, port, err := open(netns)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &Conn{socket: socket, route: netlink.NewConn(socket, port), xdp: xdpRequest{port: port}}, nil
}

// Close closes the connection. Closing again does nothing.
func (c *Conn) Close() error {
	c.exchange.Lock()
	defer c.exchange.Unlock()
	return c.socket.Close()
}

func (c *Conn) execute(typ uint16, flags netlink.HeaderFlags, data []byte) ([]netlink.Message, error) {
	c.exchange.Lock()
	defer c.exchange.Unlock()
	msgs, err := c.route.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(typ),
			Flags: netlink.Request | flags,
		},
		Data: data,
	})
	return msgs, translate(err)
}

// ifinfo is struct ifinfomsg.
func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = unix.AF_UNSPEC
	putU32(b[4:], uint32(index))
	putU32(b[8:], flags)
	putU32(b[12:], change)
	return b
}

func (c *Conn) setLink(head []byte, ae *netlink.AttributeEncoder) error {
	return c.change(unix.RTM_SETLINK, 0, head, ae)
}

func (c *Conn) change(typ uint16, flags netlink.HeaderFlags, head []byte, ae *netlink.AttributeEncoder) error {
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.execute(typ, flags|netlink.Acknowledge, append(head, attrs...))
	return err
}

// Device reads the interface of that name: ENODEV where there is none.
func (c *Conn) Device(name string) (Device, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	return c.device(ifinfo(0, 0, 0), ae)
}

// DeviceByIndex reads the interface of that index: ENODEV where there is none.
func (c *Conn) DeviceByIndex(index int) (Device, error) {
	return c.device(ifinfo(index, 0, 0), netlink.NewAttributeEncoder())
}

// skipStats spares the kernel the counters, which cost more than all the rest.
const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS

func (c *Conn) device(head []byte, ae *netlink.AttributeEncoder) (Device, error) {
	ae.Uint32(unix.IFLA_EXT_MASK, skipStats)
	attrs, err := ae.Encode()
	if err != nil {
		return Device{}, err
	}
	msgs, err := c.execute(unix.RTM_GETLINK, 0, append(head, attrs...))
	if err != nil {
		return Device{}, err
	}
	if len(msgs) != 1 {
		return Device{}, fmt.Errorf("netlink: %d answers to one question", len(msgs))
	}
	return ParseDevice(msgs[0].Data)
}

// dumpTries is how often a list is read that changes while it is read.
const dumpTries = 10

// Devices reads all interfaces of the namespace. It fails where they change
// faster than they can be listed.
func (c *Conn) Devices() ([]Device, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(unix.IFLA_EXT_MASK, skipStats)
	attrs, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	request := append(ifinfo(0, 0, 0), attrs...)
	msgs, err := c.execute(unix.RTM_GETLINK, netlink.Dump, request)
	for try := 1; err == nil && interrupted(msgs); try++ {
		if try == dumpTries {
			return nil, fmt.Errorf("the interfaces changed %d times while they were listed: try again", try)
		}
		msgs, err = c.execute(unix.RTM_GETLINK, netlink.Dump, request)
	}
	if err != nil {
		return nil, err
	}
	devices := make([]Device, 0, len(msgs))
	for _, m := range msgs {
		d, err := ParseDevice(m.Data)
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// interrupted tells whether something came or went between the parts of a list,
// so that another may be in none of them.
func interrupted(msgs []netlink.Message) bool {
	return slices.ContainsFunc(msgs, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 })
}

// IsNotExist tells whether the interface was not there.
func IsNotExist(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist)
}
