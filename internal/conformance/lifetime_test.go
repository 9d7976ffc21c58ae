package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// Rows about lifetimes do the same in both halves, and the verbs below do it by
// a bare call in the one and through package xdp in the other.

// hold makes a link with that program.
func (p *place) hold(name string) error {
	p.Helper()
	if p.half == "kernel" {
		return p.create(name, native)
	}
	l, err := p.hook(xdp.Native).AttachLink(p.prog(name))
	if err == nil {
		p.own = l
	}
	return err
}

// letGo closes the link's descriptor.
func (p *place) letGo() {
	p.Helper()
	if p.half == "kernel" {
		p.dropLink()
		return
	}
	p.must(p.own.Close())
	p.own = nil
}

func (p *place) persist(path string) error {
	if p.half == "kernel" {
		return kernel.Pin(p.link, path)
	}
	return p.own.Persist(path)
}

// open opens a pin in place of the descriptor that was let go.
func (p *place) open(path string) (err error) {
	if p.half == "kernel" {
		p.link, err = kernel.OpenPin(path)
		return err
	}
	p.own, err = xdp.OpenPinned(path)
	return err
}

// take makes the descriptor the link.
func (p *place) take(fd int) {
	p.Helper()
	if p.half == "kernel" {
		p.link = kernel.FD(fd)
		return
	}
	l, err := xdp.Adopt(fd)
	p.must(err)
	p.own = l
}

func (p *place) update(name, expected string) error {
	p.Helper()
	if p.half == "kernel" {
		return kernel.LinkUpdate(p.link, p.fd(name), p.fd(expected))
	}
	return p.own.Replace(xdp.ReplaceOptions{Program: p.prog(name), Expect: xdp.Expect(p.prog(expected))})
}

func (p *place) force() error {
	if p.half == "kernel" {
		return kernel.LinkDetach(p.link)
	}
	return p.own.Detach()
}

// read returns the link's program and ifindex.
func (p *place) read() (id uint32, prog string, ifindex int) {
	p.Helper()
	if p.half == "kernel" {
		info := p.info()
		return info.ID, p.ids[info.ProgID], int(info.Ifindex)
	}
	info, err := p.own.Info()
	p.must(err)
	return info.ID, p.ids[info.ProgramID], info.Index
}

// reads checks what the link says of itself.
func (p *place) reads(prog string, ifindex int) {
	p.Helper()
	if _, gotProg, gotIndex := p.read(); gotProg != prog || gotIndex != ifindex {
		p.Errorf("%s: the link shows program %q and ifindex %d, want %q and %d", p.half, gotProg, gotIndex, prog, ifindex)
	}
}

// both is a row that does the same in both halves.
func both(name string, body func(*place) error, leaves string) row {
	return row{name: name, kernel: body, want: ok(leaves), xdp: body, gives: done(leaves)}
}

// dead is a row whose link turns out to be defunct.
func dead(name string, body func(*place) error, leaves string) row {
	return row{
		name:   name,
		kernel: body, want: answer{errno: unix.ENOLINK, leaves: leaves},
		xdp: body, gives: result{err: xdp.ErrGone, leaves: leaves},
	}
}

// alive keeps a link by one path alone, checks that it lives, removes the path
// and sees it end.
func (p *place) alive(path string) {
	p.Helper()
	p.letGo()
	p.stays("native old")
	p.must(os.Remove(path))
	p.becomes(empty)
}

// elsewhere moves the interface at hand to Far and stays in Near.
func elsewhere(p *place) {
	p.Helper()
	p.must(p.ns.Conn.Move(p.index, p.veth.Far.FD()))
}

// sockets is a pair of sockets that lives as long as the row.
func (p *place) sockets() (near, far *os.File) {
	p.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	p.must(err)
	near, far = os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	p.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// sent lets a process attach, send its link through a socket, and be killed. The
// link is then nowhere but in the socket's queue.
func (p *place) sent() (near *os.File) {
	p.Helper()
	near, far := p.sockets()
	c := p.start(func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{far} }, "send")
	c.loaded("held")
	c.says("ready")
	p.must(far.Close())
	c.Kill()
	return near
}

// nested starts a process that keeps a link by a pin in a private bpffs.
func (p *place) nested() *process {
	p.Helper()
	c := p.start(func(cmd *exec.Cmd) { cmd.SysProcAttr.Unshareflags |= unix.CLONE_NEWNS }, "nest", p.TempDir())
	c.loaded("held")
	c.says("ready")
	if now := p.state(); now != "native held" {
		p.Errorf("%s: attached is %q", p.half, now)
	}
	return c
}

// moments is how many times a process is killed while it attaches and pins.
const moments = 20

// killed kills a process somewhere in its attaching and pinning, after that
// time, and returns whether it got as far as the pin.
func (p *place) killed(pin string, after time.Duration) bool {
	p.Helper()
	c := p.start(nil, "hold", pin)
	c.loaded("held")
	time.Sleep(after)
	c.Kill()
	_, err := os.Stat(pin)
	return err == nil
}

var lifetimeRows = []row{both("a link ends with its last descriptor", func(p *place) error {
	p.must(p.hold("old"))
	p.letGo()
	p.becomes(empty)
	return nil
}, empty), both("a link lives as long as any of its descriptors", func(p *place) error {
	p.must(p.hold("old"))
	id, _, _ := p.read()
	p.letGoBut(func() {
		p.stays("native old")
		again, err := kernel.LinkByID(id)
		p.must(err)
		p.must(again.Close())
	})
	p.becomes(empty)
	return nil
}, empty), both("a link ends with its last pin", func(p *place) error {
	pin := p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.alive(pin)
	return nil
}, empty), both("a link ends when its holder is killed", func(p *place) error {
	c := p.start(nil, "hold")
	c.loaded("held")
	c.says("ready")
	if now := p.state(); now != "native held" {
		p.Errorf("%s: attached is %q", p.half, now)
	}
	c.Kill()
	p.becomes(empty)
	return nil
}, empty), both("a pinned link outlives its holder, and another process opens and updates it", func(p *place) error {
	pin := p.pin()
	c := p.start(nil, "hold", pin)
	c.loaded("held")
	c.says("ready")
	c.Kill()
	p.stays("native held")
	taker := p.start(nil, "take", pin)
	taker.loaded("taken")
	taker.says("ready")
	if now := p.state(); now != "native taken" {
		p.Errorf("%s: attached is %q", p.half, now)
	}
	p.must(os.Remove(pin))
	p.stays("native taken")
	taker.Kill()
	p.becomes(empty)
	return nil
}, empty), both("a process killed at any moment leaves its program attached if and only if it is pinned", func(p *place) error {
	dir := kerneltest.BPFFS(p.T)
	// How long it takes when nobody kills it.
	pin := filepath.Join(dir, "whole")
	c := p.start(nil, "hold", pin)
	c.loaded("held")
	start := time.Now()
	c.says("ready")
	whole := time.Since(start)
	c.Kill()
	p.must(os.Remove(pin))
	p.becomes(empty)
	pins := 0
	for i := range moments {
		pin := filepath.Join(dir, "moment")
		// Creating the link takes most of the time, so the later half matters.
		if p.killed(pin, whole/2+whole*time.Duration(i)/moments) {
			pins++
			if now := p.state(); now != "native held" {
				p.Errorf("%s: killed at moment %d, it is pinned, and attached is %q", p.half, i, now)
			}
			p.must(os.Remove(pin))
		}
		p.becomes(empty)
	}
	p.Logf("%s: killed at %d moments over %s, and pinned by then at %d", p.half, moments, whole, pins)
	return nil
}, empty), both("a pin can be renamed", func(p *place) error {
	pin := p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.must(os.Rename(pin, pin+"2"))
	p.alive(pin + "2")
	return nil
}, empty), both("a hard link of a pin keeps the link", func(p *place) error {
	pin := p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.must(os.Link(pin, pin+"2"))
	p.must(os.Remove(pin))
	p.alive(pin + "2")
	return nil
}, empty), both("a second pin keeps the link", func(p *place) error {
	pin := p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.must(p.persist(pin + "2"))
	p.must(os.Remove(pin))
	p.alive(pin + "2")
	return nil
}, empty), both("a pin in a second bpffs keeps the link", func(p *place) error {
	pin, second := p.pin(), p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.must(p.persist(second))
	p.must(os.Remove(pin))
	p.alive(second)
	return nil
}, empty), both("a link under way in a socket outlives its sender and ends with the socket", func(p *place) error {
	near := p.sent()
	p.stays("native held")
	p.must(near.Close())
	p.becomes(empty)
	return nil
}, empty), both("a link that came through a socket from a killed sender can be updated", func(p *place) error {
	near := p.sent()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(near.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	p.must(err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	p.must(err)
	fds, err := unix.ParseUnixRights(&messages[0])
	p.must(err)
	p.take(fds[0])
	p.must(near.Close())
	p.stays("native held")
	if p.half == "kernel" {
		p.must(kernel.LinkUpdateAny(p.link, p.fd("new")))
	} else {
		p.must(p.own.Replace(xdp.ReplaceOptions{Program: p.prog("new"), Expect: xdp.Any}))
	}
	p.becomes("native new")
	p.letGo()
	p.becomes(empty)
	return nil
}, empty), both("a pin in a private mount namespace ends with its last process", func(p *place) error {
	c := p.nested()
	p.stays("native held")
	c.Kill()
	p.becomes(empty)
	return nil
}, empty), both("a pin in a private mount namespace ends when that is unmounted", func(p *place) error {
	c := p.nested()
	c.tell("unmount")
	c.says("unmounted")
	p.becomes(empty)
	return nil
}, empty), both("an interface can be renamed under its link", func(p *place) error {
	p.must(p.hold("old"))
	p.must(p.ns.Conn.SetUp(p.index, false))
	p.must(p.ns.Conn.Rename(p.index, "renamed"))
	p.name = "renamed"
	p.reads("old", p.index)
	return p.update("new", "old")
}, "native new"), dead("a link is defunct when its interface is deleted, and its pin still opens", func(p *place) error {
	pin := p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.must(p.ns.Conn.Delete(p.index))
	p.letGo()
	p.must(p.open(pin))
	p.reads("old", 0)
	return p.update("new", "old")
}, gone), dead("a link is defunct when its interface's peer is deleted, and its pin still opens", func(p *place) error {
	pin := p.pin()
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.must(p.veth.Far.Conn.Delete(p.veth.FarIndex))
	p.letGo()
	p.must(p.open(pin))
	p.reads("old", 0)
	return p.update("new", "old")
}, gone), dead("a link stays defunct when its interface comes back with the same name and ifindex", func(p *place) error {
	p.must(p.hold("old"))
	p.must(p.ns.Conn.Delete(p.index))
	p.must(p.ns.Conn.AddVethAt(p.index, p.name, p.index+1, "dev0peer"))
	p.reads("old", 0)
	if now := p.state(); now != empty {
		p.Errorf("%s: attached is %q", p.half, now)
	}
	err := p.update("new", "old")
	if now := p.state(); now != empty {
		p.Errorf("%s: attached is %q", p.half, now)
	}
	p.ns.Conn.Delete(p.index)
	return err
}, gone), {
	name: "an interface moved to another namespace keeps its link, and netlink can't attach there",
	kernel: func(p *place) error {
		p.must(p.hold("old"))
		elsewhere(p)
		p.ns = p.veth.Far
		p.index = p.ns.Device(p.T, p.name).Index
		return p.set(p.fd("new"), native)
	}, want: answer{errno: unix.EBUSY, extack: activeLink, leaves: "native old"},
	xdp: func(p *place) error {
		p.must(p.hold("old"))
		elsewhere(p)
		p.ns = p.veth.Far
		p.index = p.ns.Device(p.T, p.name).Index
		return p.hook(xdp.Native).Attach(p.prog("new"), xdp.Expect(p.prog("old")))
	}, gives: result{err: xdp.ErrConflict, leaves: "native old", check: rival("old", xdp.Native, xdp.HeldByLink)},
}, {
	name: "an interface moved to another namespace keeps its link, and netlink can't detach there",
	kernel: func(p *place) error {
		p.must(p.hold("old"))
		elsewhere(p)
		p.ns = p.veth.Far
		p.index = p.ns.Device(p.T, p.name).Index
		return p.set(none, native)
	}, want: answer{errno: unix.EBUSY, extack: activeLink, leaves: "native old"},
	xdp: func(p *place) error {
		p.must(p.hold("old"))
		elsewhere(p)
		p.ns = p.veth.Far
		p.index = p.ns.Device(p.T, p.name).Index
		return p.hook(xdp.Native).Detach(xdp.Expect(p.prog("old")))
	}, gives: result{err: xdp.ErrConflict, leaves: "native old", check: rival("old", xdp.Native, xdp.HeldByLink)},
}, both("a link is updated and detached from the namespace that its interface has left", func(p *place) error {
	p.must(p.hold("old"))
	elsewhere(p)
	near := p.ns
	p.ns = p.veth.Far
	p.index = p.ns.Device(p.T, p.name).Index
	err := near.Do(func() error { return p.update("new", "old") })
	p.must(err)
	p.becomes("native new")
	p.reads("new", p.index)
	p.must(near.Do(p.force))
	p.becomes(empty)
	p.reads("new", 0)
	return nil
}, empty), both("a link shows the new ifindex when its interface moves where the old one is taken", func(p *place) error {
	p.must(p.hold("old"))
	old := p.index
	third := kerneltest.NewNetNS(p.T)
	p.Cleanup(func() { clear(third) })
	p.must(third.Conn.AddVethAt(old, "taken", old+1, "takenpeer"))
	p.must(p.ns.Conn.Move(p.index, third.FD()))
	p.ns = third
	p.index = third.Device(p.T, p.name).Index
	if p.index == old {
		p.Errorf("%s: the interface has ifindex %d there too", p.half, old)
	}
	p.reads("old", p.index)
	return nil
}, "native old"), both("the same ifindex in two namespaces takes two links that look alike", func(p *place) error {
	p.must(p.hold("old"))
	other := kerneltest.NewNetNS(p.T)
	p.Cleanup(func() { clear(other) })
	p.must(other.Conn.AddVethAt(p.index, p.name, p.index+1, "dev0peer"))
	first, _, index := p.read()
	p.ns = other
	var second kernel.LinkInfo
	if p.half == "kernel" {
		fd, err := p.createAt("old", p.index, native)
		p.must(err)
		p.Cleanup(func() { fd.Close() })
		second, err = kernel.XDPLinkInfo(fd)
		p.must(err)
	} else {
		l, err := p.hook(xdp.Native).AttachLink(p.prog("old"))
		p.must(err)
		p.Cleanup(func() { l.Close() })
		info, err := l.Info()
		p.must(err)
		second = kernel.LinkInfo{ID: info.ID, ProgID: info.ProgramID, Ifindex: uint32(info.Index)}
		// Only a hook, which knows its namespace, tells them apart; with
		// both alike, it can't tell which link is whose.
		state, err := p.hook(xdp.Native).Query()
		p.must(err)
		if a := state.At(xdp.Native); a == nil || a.Held != xdp.HeldByLink {
			p.Errorf("xdp: the query says %+v, want a link", state)
		}
	}
	if second.ID == first || int(second.Ifindex) != index || p.ids[second.ProgID] != "old" {
		p.Errorf("%s: the second link is %+v, want another id than %d and ifindex %d", p.half, second, first, index)
	}
	return nil
}, "native old"), dead("a pinned link is defunct when its namespace is gone, and its pin opens", func(p *place) error {
	pin := p.pin()
	third := kerneltest.NewNetNS(p.T)
	p.must(third.Conn.AddVethAt(p.index, "dev0", p.index+1, "dev0peer"))
	p.ns, p.name = third, "dev0"
	p.prog("new")
	p.must(p.hold("old"))
	p.must(p.persist(pin))
	p.letGo()
	// Nothing keeps the namespace but what NewNetNS holds, and hooks.
	p.ns, p.name = p.veth.Near, p.veth.NearName
	p.must(third.Conn.Close())
	p.must(third.Close())
	for _, release := range p.opened {
		release()
	}
	p.opened = nil
	p.must(p.open(pin))
	if !kerneltest.Eventually(func() bool { _, _, index := p.read(); return index == 0 }) {
		p.Errorf("%s: the link still shows an interface", p.half)
	}
	p.reads("old", 0)
	return p.update("new", "old")
}, empty), {
	name: "a link without its program's descriptor keeps the program",
	kernel: func(p *place) error {
		p.must(p.hold("old"))
		p.must(p.prog("old").Close())
		p.stays("native old")
		return nil
	}, want: ok("native old"),
	xdp: func(p *place) error {
		p.must(p.hold("old"))
		p.must(p.prog("old").Close())
		p.stays("native old")
		return nil
	}, gives: done("native old"),
}}

// letGoBut closes the link's descriptor, with a second one open meanwhile.
func (p *place) letGoBut(f func()) {
	p.Helper()
	fd := p.link
	if p.half == "xdp" {
		fd = kernel.FD(p.own.FD())
	}
	second, err := fd.Dup()
	p.must(err)
	p.letGo()
	f()
	p.must(second.Close())
}
