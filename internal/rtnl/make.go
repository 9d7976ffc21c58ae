package rtnl

import (
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Add makes a virtual interface of a kind that needs no more than a name:
// dummy, bridge, bond, ifb.
func (c *Conn) Add(kind, name string) error {
	return c.add(name, kind, nil)
}

// AddVeth makes a veth pair, the peer in the namespace of the descriptor, or in
// this one where it is negative.
func (c *Conn) AddVeth(name, peer string, peerNetns int) error {
	return c.add(name, "veth", func(ae *netlink.AttributeEncoder) error {
		inner := netlink.NewAttributeEncoder()
		inner.String(unix.IFLA_IFNAME, peer)
		if peerNetns >= 0 {
			inner.Uint32(unix.IFLA_NET_NS_FD, uint32(peerNetns))
		}
		b, err := inner.Encode()
		if err != nil {
			return err
		}
		const vethInfoPeer = 1
		ae.Bytes(vethInfoPeer|unix.NLA_F_NESTED, append(ifinfo(0, 0, 0), b...))
		return nil
	})
}

// AddOver makes an interface on top of another: macvlan, ipvlan.
func (c *Conn) AddOver(kind, name string, lower int) error {
	return c.create(kind, name, nil, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_LINK, uint32(lower))
	})
}

// AddVXLAN makes a vxlan interface that sends to nobody.
func (c *Conn) AddVXLAN(name string, id uint32) error {
	return c.add(name, "vxlan", func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(unix.IFLA_VXLAN_ID, id)
		return nil
	})
}

func (c *Conn) add(name, kind string, data func(*netlink.AttributeEncoder) error) error {
	return c.create(kind, name, data, nil)
}

func (c *Conn) create(kind, name string, data func(*netlink.AttributeEncoder) error, more func(*netlink.AttributeEncoder)) error {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	if more != nil {
		more(ae)
	}
	ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
		ae.String(unix.IFLA_INFO_KIND, kind)
		if data != nil {
			ae.Nested(unix.IFLA_INFO_DATA, data)
		}
		return nil
	})
	return c.change(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfo(0, 0, 0), ae)
}

// Delete removes the interface.
func (c *Conn) Delete(index int) error {
	return c.change(unix.RTM_DELLINK, 0, ifinfo(index, 0, 0), netlink.NewAttributeEncoder())
}

// SetUp brings the interface up, or down.
func (c *Conn) SetUp(index int, up bool) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	return c.setLink(ifinfo(index, flags, unix.IFF_UP), netlink.NewAttributeEncoder())
}

// SetMTU changes the MTU, in bytes.
func (c *Conn) SetMTU(index, mtu int) error {
	return c.set(index, func(ae *netlink.AttributeEncoder) { ae.Uint32(unix.IFLA_MTU, uint32(mtu)) })
}

// SetMaster makes the interface a port of another, or of none with 0.
func (c *Conn) SetMaster(index, master int) error {
	return c.set(index, func(ae *netlink.AttributeEncoder) { ae.Uint32(unix.IFLA_MASTER, uint32(master)) })
}

// Rename gives the interface another name.
func (c *Conn) Rename(index int, name string) error {
	return c.set(index, func(ae *netlink.AttributeEncoder) { ae.String(unix.IFLA_IFNAME, name) })
}

// Move moves the interface to the namespace of the descriptor; its index there
// is the same unless it is taken.
func (c *Conn) Move(index, netns int) error {
	return c.set(index, func(ae *netlink.AttributeEncoder) { ae.Uint32(unix.IFLA_NET_NS_FD, uint32(netns)) })
}

// SetMAC sets the hardware address.
func (c *Conn) SetMAC(index int, mac [6]byte) error {
	return c.set(index, func(ae *netlink.AttributeEncoder) { ae.Bytes(unix.IFLA_ADDRESS, mac[:]) })
}

func (c *Conn) set(index int, attrs func(*netlink.AttributeEncoder)) error {
	ae := netlink.NewAttributeEncoder()
	attrs(ae)
	return c.setLink(ifinfo(index, 0, 0), ae)
}

// AddAddress gives the interface an address, usable at once.
func (c *Conn) AddAddress(index int, prefix netip.Prefix) error {
	addr := prefix.Addr()
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0] = byte(family)
	head[1] = byte(prefix.Bits())
	head[2] = unix.IFA_F_NODAD
	putU32(head[4:], uint32(index))
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, addr.AsSlice())
	ae.Bytes(unix.IFA_ADDRESS, addr.AsSlice())
	return c.change(unix.RTM_NEWADDR, netlink.Create|netlink.Excl, head, ae)
}

// AddNeighbor fixes the hardware address of an IP address, so that no packet
// has to ask for it.
func (c *Conn) AddNeighbor(index int, addr netip.Addr, mac [6]byte) error {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = byte(family)
	putU32(head[4:], uint32(index))
	head[8] = unix.NUD_PERMANENT
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.NDA_DST, addr.AsSlice())
	ae.Bytes(unix.NDA_LLADDR, mac[:])
	return c.change(unix.RTM_NEWNEIGH, netlink.Create|netlink.Replace, head, ae)
}
