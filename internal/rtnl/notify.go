package rtnl

import (
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Listener is a socket on which the kernel tells of the interfaces of a network
// namespace. Nothing is asked on it, so it is the library's own.
type Listener struct{ conn *netlink.Conn }

// Notification is what the kernel tells of an interface: that it changed, or is gone.
type Notification struct {
	Device Device
	Gone   bool
}

// ErrMissed says that more was told than the socket could hold.
var ErrMissed = errors.New("netlink: notifications were lost")

// Listen listens in the network namespace of the descriptor, or the calling thread's
// where it is negative. The caller closes it.
func Listen(netns int) (*Listener, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK, NetNS: max(netns, 0)})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &Listener{conn}, nil
}

// Close closes the socket.
func (l *Listener) Close() error { return l.conn.Close() }

// Interrupt has Receive return, now and from then on.
func (l *Listener) Interrupt() error { return l.conn.SetReadDeadline(time.Unix(1, 0)) }

// Receive waits for the next notifications. ErrMissed is no reason not to go on.
func (l *Listener) Receive() ([]Notification, error) {
	messages, err := l.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return nil, ErrMissed
	}
	if err != nil {
		return nil, err
	}
	var told []Notification
	for _, m := range messages {
		n, ok, err := parseNotification(m)
		if err != nil {
			return nil, err
		}
		if ok {
			told = append(told, n)
		}
	}
	return told, nil
}

// parseNotification is not ok for what says nothing of programs: bridges and wireless
// drivers tell of their ports and events by messages of the same type, with less in
// them.
func parseNotification(m netlink.Message) (n Notification, ok bool, err error) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
	case unix.RTM_DELLINK:
		n.Gone = true
	default:
		return n, false, nil
	}
	if len(m.Data) > 0 && m.Data[0] != unix.AF_UNSPEC {
		return n, false, nil
	}
	if n.Device, err = ParseDevice(m.Data); err != nil {
		return n, false, err
	}
	return n, n.Gone || tellsOfPrograms(m.Data), nil
}

func tellsOfPrograms(b []byte) bool {
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return false
	}
	for ad.Next() {
		if ad.Type() == unix.IFLA_XDP {
			return true
		}
	}
	return false
}
