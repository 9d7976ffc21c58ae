package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Device is an interface as RTM_GETLINK shows it.
type Device struct {
	Index int
	Name  string
	Up    bool
	MTU   int
	// MaxMTU is the largest MTU that the driver accepts now, 0 where the
	// kernel does not say.
	MaxMTU int
	// Master is the index of the bridge, bond or other device that this one
	// is a port of, or 0.
	Master int
	// Kind is what a virtual device is ("veth", "bridge", ...), empty for a
	// physical one.
	Kind string
	// Link is the index of the peer or lower device, 0 where there is none.
	// It is an index of another namespace where LinkElsewhere is set.
	Link          int
	LinkElsewhere bool
	// Parent is the bus device behind a physical interface, such as a PCI
	// address, from Linux 5.14 on.
	Parent string
	XDP    XDP
}

// XDP holds the ids of the programs at the interface's hooks, 0 where there is
// none.
type XDP struct {
	Native, Generic, Offload uint32
}

func putU32(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }

// ParseDevice decodes the payload of an RTM_NEWLINK message.
func ParseDevice(b []byte) (Device, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Device{}, errors.New("netlink: short RTM_NEWLINK message")
	}
	d := Device{
		Index: int(int32(binary.NativeEndian.Uint32(b[4:]))),
		Up:    binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0,
	}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return Device{}, fmt.Errorf("netlink: RTM_NEWLINK: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			d.Name = ad.String()
		case unix.IFLA_MTU:
			d.MTU = int(ad.Uint32())
		case unix.IFLA_MAX_MTU:
			d.MaxMTU = int(ad.Uint32())
		case unix.IFLA_MASTER:
			d.Master = int(ad.Uint32())
		case unix.IFLA_LINK:
			d.Link = int(ad.Uint32())
		case unix.IFLA_LINK_NETNSID:
			d.LinkElsewhere = true
		case unix.IFLA_PARENT_DEV_NAME:
			d.Parent = ad.String()
		case unix.IFLA_LINKINFO:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.IFLA_INFO_KIND {
						d.Kind = ad.String()
					}
				}
				return ad.Err()
			})
		case unix.IFLA_XDP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				return parseXDP(ad, &d.XDP)
			})
		}
	}
	if err := ad.Err(); err != nil {
		return Device{}, fmt.Errorf("netlink: RTM_NEWLINK: %w", err)
	}
	return d, nil
}

// parseXDP reads the programs. With one attached the kernel reports its mode
// and its id in the mode's own attribute; with several, the mode is "multi"
// and each has its attribute.
func parseXDP(ad *netlink.AttributeDecoder, x *XDP) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_XDP_DRV_PROG_ID:
			x.Native = ad.Uint32()
		case unix.IFLA_XDP_SKB_PROG_ID:
			x.Generic = ad.Uint32()
		case unix.IFLA_XDP_HW_PROG_ID:
			x.Offload = ad.Uint32()
		}
	}
	return ad.Err()
}
