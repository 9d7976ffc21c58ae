package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
)

// End is one of two interfaces wired to each other.
type End struct {
	NS   *netns.NS
	Conn *rtnl.Conn // to NS
	Name string
	Addr netip.Addr // in a /24 network
	MAC  [6]byte
}

// Index reads the interface's index.
func (e End) Index() (int, error) {
	d, err := e.Conn.Device(e.Name)
	return d.Index, err
}

// Wire makes a veth pair, up, with addresses that know each other, so that no
// packet but the caller's own has to travel.
func Wire(near, far End) error {
	if err := near.Conn.AddVeth(near.Name, far.Name, far.NS.FD()); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	for _, e := range []struct{ end, peer End }{{near, far}, {far, near}} {
		if err := e.end.configure(e.peer); err != nil {
			return fmt.Errorf("set up %s: %w", e.end.Name, err)
		}
	}
	return nil
}

func (e End) configure(peer End) error {
	index, err := e.Index()
	if err != nil {
		return err
	}
	if err := e.Conn.SetMAC(index, e.MAC); err != nil {
		return err
	}
	if err := e.silence(); err != nil {
		return err
	}
	return e.Address(peer)
}

// silence keeps IPv6 from asking the wire for neighbors and routers, whose
// packets would be counted among the test's where a queue loses them.
func (e End) silence() error {
	return e.NS.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+e.Name+"/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a kernel without
		}
		return err
	})
}

// Address gives the interface its address and brings it up: an interface that
// moves to another namespace loses both.
func (e End) Address(peer End) error {
	index, err := e.Index()
	if err != nil {
		return err
	}
	if err := e.Conn.AddAddress(index, netip.PrefixFrom(e.Addr, 24)); err != nil {
		return err
	}
	if err := e.Conn.SetUp(index, true); err != nil {
		return err
	}
	return e.Conn.AddNeighbor(index, peer.Addr, peer.MAC)
}
