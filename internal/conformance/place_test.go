package conformance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

const (
	none   = -1 // as a program: detach; as an expectation: an empty hook
	skb    = unix.XDP_FLAGS_SKB_MODE
	native = unix.XDP_FLAGS_DRV_MODE
)

// place is where one half of a row happens: an interface, Near of a veth unless
// the row chooses another, and the programs and the link that it deals with.
type place struct {
	*testing.T
	// half is "kernel" or "xdp".
	half string
	veth *kerneltest.Veth

	// ns, name and index are those of the interface at hand.
	ns    *kerneltest.NetNS
	name  string
	index int

	programs map[string]*ebpf.Program
	ids      map[uint32]string
	// link is the link that the kernel half and given made, if any.
	link kernel.FD
	// own is the link that the xdp half made, if any.
	own *xdp.Link
	// between is called by a replacement that leaves a gap, in it.
	between func()
	// opened close the namespaces that package xdp opened.
	opened []func()
}

func newPlace(t *testing.T, half string) *place {
	v := kerneltest.NewVeth(t)
	p := &place{
		T: t, half: half, veth: v, ns: v.Near, name: v.NearName, index: v.NearIndex,
		programs: map[string]*ebpf.Program{}, ids: map[uint32]string{}, link: -1,
	}
	t.Cleanup(func() {
		if p.link >= 0 {
			p.link.Close()
		}
		if p.own != nil {
			p.own.Close()
		}
		for _, release := range p.opened {
			release()
		}
		// A namespace goes with its programs when the kernel gets to it;
		// without its interfaces it holds none.
		for _, ns := range []*kerneltest.NetNS{v.Near, v.Far} {
			clear(ns)
		}
	})
	return p
}

// clear deletes what can be deleted from a namespace.
func clear(ns *kerneltest.NetNS) {
	devices, _ := ns.Conn.Devices()
	for _, d := range devices {
		ns.Conn.Delete(d.Index) // loopback stays, a peer went with the other
	}
}

// must ends the row where something failed that is not what it is about.
func (p *place) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatalf("%s: %v", p.half, err)
	}
}

// at makes the interface of that name in Near the one at hand.
func (p *place) at(name string) {
	p.Helper()
	d := p.veth.Near.Device(p.T, name)
	p.ns, p.name, p.index = p.veth.Near, name, d.Index
}

// add makes a virtual interface in Near.
func (p *place) add(kind, name string) {
	p.Helper()
	conn := p.veth.Near.Conn
	var err error
	switch kind {
	case "vxlan":
		err = conn.AddVXLAN(name, 7)
	case "macvlan":
		err = conn.AddOver(kind, name, p.veth.NearIndex)
	default:
		err = conn.Add(kind, name)
	}
	if errors.Is(err, unix.EOPNOTSUPP) && environment() == "host" {
		p.Skipf("this kernel was built without the device kind %s", kind)
	}
	p.must(err)
}

// addTap makes a tap interface, which lives as long as its descriptor.
func (p *place) addTap(name string) {
	p.Helper()
	var fd int
	p.ns.In(p.T, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	p.Cleanup(func() { unix.Close(fd) })
}

// load loads a program that passes every packet. It is remembered by its name.
func (p *place) load(name string, change func(*ebpf.ProgramSpec)) *ebpf.Program {
	p.Helper()
	spec := &ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	}
	if change != nil {
		change(spec)
	}
	var prog *ebpf.Program
	// The device of a device-bound program is looked up in the thread's
	// network namespace.
	p.ns.In(p.T, func() (err error) {
		prog, err = ebpf.NewProgram(spec)
		return err
	})
	p.Cleanup(func() { prog.Close() })
	p.programs[name] = prog
	p.ids[kerneltest.ProgramID(p.T, prog)] = name
	return prog
}

// prog is the program of that name, loaded if it was not.
func (p *place) prog(name string) *ebpf.Program {
	p.Helper()
	if prog := p.programs[name]; prog != nil {
		return prog
	}
	return p.load(name, nil)
}

// fd is that program's descriptor.
func (p *place) fd(name string) int { p.Helper(); return p.prog(name).FD() }

// id is that program's id.
func (p *place) id(name string) uint32 {
	for id, n := range p.ids {
		if n == name {
			return id
		}
	}
	return 0
}

// attachType loads the program for that expected attach type.
func (p *place) attachType(name string, t ebpf.AttachType) {
	p.Helper()
	p.load(name, func(s *ebpf.ProgramSpec) { s.AttachType = t })
}

// frags loads a program that copes with packets in several buffers.
func (p *place) frags(name string) {
	p.Helper()
	p.load(name, func(s *ebpf.ProgramSpec) { s.Flags |= unix.BPF_F_XDP_HAS_FRAGS })
}

// bound loads a program for one interface of Near.
func (p *place) bound(name string, index int) {
	p.Helper()
	p.load(name, func(s *ebpf.ProgramSpec) {
		s.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
		s.Ifindex = uint32(index)
	})
}

// state is what is attached to the interface at hand: "native old", "generic
// old", both separated by a comma, or nothing.
func (p *place) state() string {
	p.Helper()
	d, err := p.ns.Conn.DeviceByIndex(p.index)
	if rtnl.IsNotExist(err) {
		return gone
	}
	p.must(err)
	return p.describe(d.XDP)
}

func (p *place) describe(x rtnl.XDP) string {
	var attached []string
	for _, m := range []struct {
		mode string
		id   uint32
	}{{"native", x.Native}, {"generic", x.Generic}, {"offload", x.Offload}} {
		if m.id != 0 {
			name, known := p.ids[m.id]
			if !known {
				name = fmt.Sprintf("program %d", m.id)
			}
			attached = append(attached, m.mode+" "+name)
		}
	}
	return strings.Join(attached, ", ")
}

// becomes waits until that is attached: a link's end takes the kernel a moment.
func (p *place) becomes(state string) {
	p.Helper()
	var now string
	if !kerneltest.Eventually(func() bool { now = p.state(); return now == state }) {
		p.Errorf("%s: attached is %q, want %q", p.half, now, state)
	}
}

// stays fails the row if that is not attached, now and after another link has
// ended, which takes the kernel as long as ending this one would have.
func (p *place) stays(state string) {
	p.Helper()
	other := kerneltest.NewVeth(p.T)
	var fd kernel.FD
	other.Near.In(p.T, func() (err error) {
		fd, err = kernel.LinkCreateXDP(p.fd("elsewhere"), other.NearIndex, native)
		return err
	})
	p.must(fd.Close())
	if !kerneltest.Eventually(func() bool {
		d, err := other.Near.Conn.DeviceByIndex(other.NearIndex)
		return err == nil && d.XDP == rtnl.XDP{}
	}) {
		p.Errorf("%s: a closed link stays attached", p.half)
	}
	clear(other.Near)
	if now := p.state(); now != state {
		p.Errorf("%s: attached is %q, want it to stay %q", p.half, now, state)
	}
}

// The bare calls, at the interface at hand.

// set sends a program, or none, without an expectation.
func (p *place) set(fd int, flags uint32) error {
	return p.ns.Conn.SetXDP(p.index, fd, flags)
}

// replace sends it with an expectation.
func (p *place) replace(fd, expected int, flags uint32) error {
	return p.ns.Conn.ReplaceXDP(p.index, fd, expected, flags)
}

// create makes a link and keeps it as the place's, if it has none yet.
func (p *place) create(name string, flags uint32) error {
	fd, err := p.createAt(name, p.index, flags)
	if err != nil {
		return err
	}
	if p.link >= 0 {
		p.Cleanup(func() { fd.Close() })
		return nil
	}
	p.link = fd
	return nil
}

func (p *place) createAt(name string, index int, flags uint32) (fd kernel.FD, err error) {
	prog := p.fd(name)
	err = p.ns.Do(func() error {
		fd, err = kernel.LinkCreateXDP(prog, index, flags)
		return err
	})
	return fd, err
}

// dropLink closes the place's link.
func (p *place) dropLink() {
	p.Helper()
	p.must(p.link.Close())
	p.link = -1
}

// info reads the place's link.
func (p *place) info() kernel.LinkInfo {
	p.Helper()
	info, err := kernel.XDPLinkInfo(p.link)
	p.must(err)
	return info
}

// What rows start from.

// attached is a program attached by netlink.
func attached(name string, flags uint32) func(*place) {
	return func(p *place) {
		p.Helper()
		p.must(p.set(p.fd(name), flags))
	}
}

// linked is a program attached by a link.
func linked(name string, flags uint32) func(*place) {
	return func(p *place) {
		p.Helper()
		p.must(p.create(name, flags))
	}
}

// onA is an interface of that kind.
func onA(kind string) func(*place) {
	return func(p *place) {
		p.Helper()
		if kind == "tap" {
			p.addTap("dev0")
		} else {
			p.add(kind, "dev0")
		}
		p.at("dev0")
	}
}

// all is several of them, in that order.
func all(given ...func(*place)) func(*place) {
	return func(p *place) {
		p.Helper()
		for _, g := range given {
			g(p)
		}
	}
}

// farMTU is a peer with that MTU.
func farMTU(mtu int) func(*place) {
	return func(p *place) {
		p.Helper()
		p.must(p.veth.Far.Conn.SetMTU(p.veth.FarIndex, mtu))
	}
}

// The same through package xdp.

// hook opens the hook of the interface at hand.
func (p *place) hook(mode xdp.Mode) *xdp.Hook {
	p.Helper()
	ns, err := xdp.OpenNamespace(p.ns.Path())
	p.must(err)
	p.opened = append(p.opened, func() { ns.Close() })
	h, err := ns.Hook(p.name, mode)
	p.must(err)
	return h
}

// adopt is the place's link as package xdp sees it.
func (p *place) adopt() *xdp.Link {
	p.Helper()
	fd, err := p.link.Dup()
	p.must(err)
	l, err := xdp.Adopt(int(fd))
	p.must(err)
	p.Cleanup(func() { l.Close() })
	return l
}

func attach(mode xdp.Mode, name string, expect func(*place) xdp.Expectation) func(*place) error {
	return func(p *place) error {
		p.Helper()
		return p.hook(mode).Attach(p.prog(name), expect(p))
	}
}

func detach(mode xdp.Mode, expect func(*place) xdp.Expectation) func(*place) error {
	return func(p *place) error {
		p.Helper()
		return p.hook(mode).Detach(expect(p))
	}
}

func attachLink(mode xdp.Mode, name string) func(*place) error {
	return func(p *place) error {
		p.Helper()
		l, err := p.hook(mode).AttachLink(p.prog(name))
		if err == nil {
			p.Cleanup(func() { l.Close() })
		}
		return err
	}
}

// update replaces the program of the place's link.
func update(name string, expect func(*place) xdp.Expectation) func(*place) error {
	return func(p *place) error {
		p.Helper()
		return p.adopt().Replace(xdp.ReplaceOptions{
			Program: p.prog(name), Expect: expect(p), Hook: p.hook(xdp.Auto),
		})
	}
}

func anything(*place) xdp.Expectation { return xdp.Any }
func nobody(*place) xdp.Expectation   { return xdp.Empty }

func program(name string) func(*place) xdp.Expectation {
	return func(p *place) xdp.Expectation { return xdp.Expect(p.prog(name)) }
}

func programID(name string) func(*place) xdp.Expectation {
	return func(p *place) xdp.Expectation { p.prog(name); return xdp.ExpectID(p.id(name)) }
}

// bpffs is a bpffs of the row's own, and pin a path in it.
func (p *place) pin() string {
	p.Helper()
	return filepath.Join(kerneltest.BPFFS(p.T), "link")
}

// notBPF is a descriptor that is no BPF object.
func (p *place) notBPF() int {
	p.Helper()
	f, err := os.Open(os.DevNull)
	p.must(err)
	p.Cleanup(func() { f.Close() })
	return int(f.Fd())
}
