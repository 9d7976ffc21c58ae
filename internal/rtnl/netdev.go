package rtnl

import (
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// XDPFeatures are what the driver of an interface says of itself, enum
// netdev_xdp_act in include/uapi/linux/netdev.h.
type XDPFeatures uint64

// The names are the kernel's, without NETDEV_XDP_ACT_.
const (
	XDPBasic       XDPFeatures = 1 << iota // runs programs natively, knows all actions but redirect
	XDPRedirect                            // knows XDP_REDIRECT
	XDPNdoXmit                             // sends frames that were redirected to it
	XDPXSKZerocopy                         // AF_XDP without copying
	XDPHWOffload                           // runs programs on the card
	XDPRxSG                                // gives programs packets in several buffers
	XDPNdoXmitSG                           // sends redirected frames in several buffers
)

// Has tells whether all of the given features are there.
func (f XDPFeatures) Has(all XDPFeatures) bool { return f&all == all }

// ErrNoNetdev says that the kernel has no netdev family, which tells what
// drivers say of themselves. It came with Linux 6.3.
var ErrNoNetdev = errors.New("the kernel does not tell what drivers can do before Linux 6.3")

// From include/uapi/linux/netdev.h, which x/sys/unix does not have.
const (
	netdevFamily         = "netdev"
	netdevCmdDevGet      = 1
	netdevDevIfindex     = 1
	netdevDevXDPFeatures = 3
)

// ReadXDPFeatures reads what the driver says of the interface of that index,
// in the network namespace of the descriptor, or the calling thread's where it
// is negative. What it says can change with the interface's configuration. It
// needs no privilege. The error is ErrNoNetdev where the kernel has no answer,
// and ENODEV where there is no such interface. Since Linux 6.3.
func ReadXDPFeatures(netns, index int) (XDPFeatures, error) {
	config := &netlink.Config{Strict: true}
	if netns >= 0 {
		config.NetNS = netns
	}
	c, err := genetlink.Dial(config)
	if err != nil {
		return 0, fmt.Errorf("open a generic netlink socket: %w", translate(err))
	}
	defer c.Close()
	family, err := c.GetFamily(netdevFamily)
	if errors.Is(err, os.ErrNotExist) {
		return 0, ErrNoNetdev
	}
	if err != nil {
		return 0, translate(err)
	}
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(netdevDevIfindex, uint32(index))
	attrs, err := ae.Encode()
	if err != nil {
		return 0, err
	}
	answers, err := c.Execute(genetlink.Message{
		Header: genetlink.Header{Command: netdevCmdDevGet, Version: family.Version},
		Data:   attrs,
	}, family.ID, netlink.Request)
	if err != nil {
		return 0, translate(err)
	}
	if len(answers) != 1 {
		return 0, fmt.Errorf("netlink: %d answers to one question", len(answers))
	}
	return ParseXDPFeatures(answers[0].Data)
}

// ParseXDPFeatures decodes the attributes of a NETDEV_CMD_DEV_GET answer.
func ParseXDPFeatures(b []byte) (XDPFeatures, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return 0, fmt.Errorf("netlink: NETDEV_CMD_DEV_GET: %w", err)
	}
	var features XDPFeatures
	found := false
	for ad.Next() {
		if ad.Type() == netdevDevXDPFeatures {
			features, found = XDPFeatures(ad.Uint64()), true
		}
	}
	if err := ad.Err(); err != nil {
		return 0, fmt.Errorf("netlink: NETDEV_CMD_DEV_GET: %w", err)
	}
	if !found {
		return 0, errors.New("netlink: NETDEV_CMD_DEV_GET: the answer has no XDP features")
	}
	return features, nil
}
