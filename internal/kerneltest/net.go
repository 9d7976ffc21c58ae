package kerneltest

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/internal/testbed"
	"golang.org/x/sys/unix"
)

// NetNS is a network namespace that a test made. It ends with the test.
type NetNS struct {
	*netns.NS
	Conn *rtnl.Conn
}

// NewNetNS makes an empty network namespace with loopback up.
func NewNetNS(t testing.TB) *NetNS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	conn, err := rtnl.Dial(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := &NetNS{NS: ns, Conn: conn}
	n.Up(t, "lo")
	return n
}

// Path leads to the namespace from every process of the test.
func (n *NetNS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Name gives the namespace a name, as `ip netns add` does, for the test's time.
func (n *NetNS) Name(t testing.TB, name string) string {
	t.Helper()
	path := netns.NamedDir + "/" + name
	if err := os.MkdirAll(netns.NamedDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.FD()), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return name
}

// In calls f inside the namespace and fails the test if it fails.
func (n *NetNS) In(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatal(err)
	}
}

// Device reads an interface, which must be there.
func (n *NetNS) Device(t testing.TB, name string) rtnl.Device {
	t.Helper()
	d, err := n.Conn.Device(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return d
}

// Up brings an interface up.
func (n *NetNS) Up(t testing.TB, name string) {
	t.Helper()
	if err := n.Conn.SetUp(n.Device(t, name).Index, true); err != nil {
		t.Fatalf("bring %s up: %v", name, err)
	}
}

// Veth is two namespaces and a pair of interfaces between them, up, with
// addresses that know each other, so that no packet but the test's own has to
// travel. Programs are attached at Near; packets come from Far.
type Veth struct {
	Near, Far           *NetNS
	NearName, FarName   string
	NearIndex, FarIndex int
	NearAddr, FarAddr   netip.Addr
}

var vethNumber atomic.Uint32

// NewVeth makes a pair in two new namespaces.
func NewVeth(t testing.TB) *Veth {
	t.Helper()
	n := vethNumber.Add(1)
	v := &Veth{
		Near: NewNetNS(t), Far: NewNetNS(t),
		NearName: fmt.Sprintf("near%d", n), FarName: fmt.Sprintf("far%d", n),
		NearAddr: netip.MustParseAddr("10.111.0.1"), FarAddr: netip.MustParseAddr("10.111.0.2"),
	}
	near := v.Near.end(v.NearName, v.NearAddr, 1)
	far := v.Far.end(v.FarName, v.FarAddr, 2)
	if err := testbed.Wire(near, far); err != nil {
		t.Fatal(err)
	}
	v.NearIndex, v.FarIndex = v.Near.Device(t, v.NearName).Index, v.Far.Device(t, v.FarName).Index
	return v
}

func (n *NetNS) end(name string, addr netip.Addr, mac byte) testbed.End {
	return testbed.End{NS: n.NS, Conn: n.Conn, Name: name, Addr: addr, MAC: [6]byte{0x02, 0, 0, 0, 0, mac}}
}
