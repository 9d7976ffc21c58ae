package rtnl

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// AddVethAt makes a veth pair in this namespace, each end with the index given.
// It is for the conformance tests: otherwise it is a matter of luck whether an
// index is used again.
func (c *Conn) AddVethAt(index int, name string, peerIndex int, peer string) error {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, peer)
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	ae = netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
		ae.String(unix.IFLA_INFO_KIND, "veth")
		ae.Nested(unix.IFLA_INFO_DATA, func(ae *netlink.AttributeEncoder) error {
			const vethInfoPeer = 1
			ae.Bytes(vethInfoPeer|unix.NLA_F_NESTED, append(ifinfo(peerIndex, 0, 0), attrs...))
			return nil
		})
		return nil
	})
	return c.change(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfo(index, 0, 0), ae)
}
