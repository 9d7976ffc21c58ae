package conformance

import (
	"errors"
	"path/filepath"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

func createLink(name string, flags uint32) func(*place) error {
	return func(p *place) error { return p.create(name, flags) }
}

func updateAny(name string) func(*place) error {
	return func(p *place) error { return kernel.LinkUpdateAny(p.link, p.fd(name)) }
}

// updateExpecting updates the link with F_REPLACE and that old program.
func updateExpecting(name, expected string) func(*place) error {
	return func(p *place) error { return kernel.LinkUpdate(p.link, p.fd(name), p.fd(expected)) }
}

// updateBound replaces the link's program by one that was loaded for the
// interface of that name.
func updateBound(name, device string) func(*place) error {
	return func(p *place) error {
		index := p.index
		if device != "" {
			index = p.ns.Device(p.T, device).Index
		}
		return p.adopt().Replace(xdp.ReplaceOptions{
			Program: p.prog(name), Expect: xdp.Any, Hook: p.hook(xdp.Auto), BoundTo: index,
		})
	}
}

// defunct is a link that somebody detached by force.
func defunct(p *place) {
	p.Helper()
	p.must(p.create("old", native))
	p.must(kernel.LinkDetach(p.link))
}

const boundWhy = "an update checks what an attach checks"

// fragsToNone is a link that was made with a program that copes with fragments
// and has had one since that does not.
func fragsToNone(p *place) {
	p.Helper()
	p.frags("old")
	p.must(p.create("old", native))
	p.must(kernel.LinkUpdateAny(p.link, p.fd("new")))
}

func noAttachType(p *place, name string) { p.attachType(name, ebpf.AttachNone) }

func heldBy(name string, mode xdp.Mode) result {
	return fails(xdp.ErrConflict, rival(name, mode, xdp.HeldByLink))
}

var linkRows = []row{{
	name:   "create on an empty hook",
	kernel: createLink("new", native), want: ok("native new"),
	xdp: attachLink(xdp.Native, "new"), gives: done("native new"),
}, {
	name:   "create without a mode is native on a veth",
	kernel: createLink("new", 0), want: ok("native new"),
	xdp: attachLink(xdp.Auto, "new"), gives: done("native new"),
}, {
	name:   "create without a mode is generic on an ifb",
	given:  onA("ifb"),
	kernel: createLink("new", 0), want: ok("generic new"),
	xdp: attachLink(xdp.Auto, "new"), gives: done("generic new"),
}, {
	name:   "create over what netlink attached",
	given:  attached("old", native),
	kernel: createLink("new", native), want: refused(unix.EBUSY, ""),
	xdp:   attachLink(xdp.Native, "new"),
	gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink), says("a link can't take over")),
}, {
	name:   "create over a link",
	given:  linked("old", native),
	kernel: createLink("new", native), want: refused(unix.EBUSY, ""),
	xdp: attachLink(xdp.Native, "new"), gives: heldBy("old", xdp.Native),
}, {
	name:   "create in generic mode where a native link is",
	given:  linked("old", native),
	kernel: createLink("new", skb), want: refused(unix.EEXIST, ""),
	xdp: attachLink(xdp.Generic, "new"), gives: heldBy("old", xdp.Native),
}, {
	name:   "create in native mode where a generic link is",
	given:  linked("old", skb),
	kernel: createLink("new", native), want: refused(unix.EEXIST, ""),
	xdp: attachLink(xdp.Native, "new"), gives: heldBy("old", xdp.Generic),
}, {
	name:   "create in native mode where netlink attached a generic program",
	given:  attached("old", skb),
	kernel: createLink("new", native), want: refused(unix.EEXIST, ""),
	xdp: attachLink(xdp.Native, "new"), gives: fails(xdp.ErrConflict, rival("old", xdp.Generic, xdp.HeldByNetlink)),
}, {
	name:   "netlink attach while a link holds the hook",
	given:  linked("old", native),
	kernel: send("new", native), want: refused(unix.EBUSY, activeLink),
	xdp: attach(xdp.Native, "new", anything), gives: heldBy("old", xdp.Native),
}, {
	name:   "netlink attach of the link's own program",
	given:  linked("old", native),
	kernel: send("old", native), want: refused(unix.EBUSY, activeLink),
	xdp: attach(xdp.Native, "old", anything), gives: heldBy("old", xdp.Native),
}, {
	name:   "netlink attach that expects an empty hook while a link holds it",
	given:  linked("old", native),
	kernel: func(p *place) error { return p.replace(p.fd("new"), none, native) }, want: refused(unix.EBUSY, activeLink),
	xdp: attach(xdp.Native, "new", nobody), gives: heldBy("old", xdp.Native),
}, {
	name:   "netlink replace with the right expected program while a link holds the hook",
	given:  linked("old", native),
	kernel: sendExpecting("new", "old"), want: refused(unix.EBUSY, activeLink),
	xdp: attach(xdp.Native, "new", program("old")), gives: heldBy("old", xdp.Native),
}, {
	name:   "netlink detach while a link holds the hook",
	given:  linked("old", native),
	kernel: sendDetach(native), want: refused(unix.EBUSY, activeLink),
	xdp: detach(xdp.Native, anything), gives: heldBy("old", xdp.Native),
}, {
	name:   "netlink detach with the right expected program while a link holds the hook",
	given:  linked("old", native),
	kernel: func(p *place) error { return p.replace(none, p.fd("old"), native) }, want: refused(unix.EBUSY, activeLink),
	xdp: detach(xdp.Native, program("old")), gives: heldBy("old", xdp.Native),
}, {
	name:   "netlink detach in generic mode of a generic link",
	given:  linked("old", skb),
	kernel: sendDetach(skb), want: refused(unix.EBUSY, activeLink),
	xdp: detach(xdp.Generic, anything), gives: heldBy("old", xdp.Generic),
}, {
	// This is "ip link set X xdp off".
	name:   "netlink detach without a mode leaves a generic link and succeeds",
	given:  linked("old", skb),
	kernel: sendDetach(0), want: ok("generic old"),
	xdp: detach(xdp.Auto, anything), gives: heldBy("old", xdp.Generic),
}, {
	name:   "netlink detach in native mode leaves a generic link and succeeds",
	given:  linked("old", skb),
	kernel: sendDetach(native), want: ok("generic old"),
	xdp: detach(xdp.Native, anything), gives: fails(xdp.ErrNotAttached, says("attached in generic mode")),
}, {
	name:   "netlink detach in generic mode leaves a native link and succeeds",
	given:  linked("old", native),
	kernel: sendDetach(skb), want: ok("native old"),
	xdp: detach(xdp.Generic, anything), gives: fails(xdp.ErrNotAttached, says("attached in native mode")),
}, {
	name:   "update",
	given:  linked("old", native),
	kernel: updateAny("new"), want: ok("native new"),
	xdp: update("new", anything), gives: done("native new"),
}, {
	name:   "update with the right old program",
	given:  linked("old", native),
	kernel: updateExpecting("new", "old"), want: ok("native new"),
	xdp: update("new", program("old")), gives: done("native new"),
}, {
	name:   "update with a wrong old program",
	given:  linked("old", native),
	kernel: updateExpecting("new", "other"), want: refused(unix.EPERM, ""),
	xdp: update("new", program("other")), gives: fails(xdp.ErrConflict, func(p *place, e *xdp.Error) {
		if e.Rival == nil || e.Rival.Program.ID != p.id("old") || e.Rival.LinkID != p.info().ID {
			p.Errorf("xdp: %v names the rival %+v, want program %d of link %d", e, e.Rival, p.id("old"), p.info().ID)
		}
		if errors.Is(e, xdp.ErrPermission) {
			p.Errorf("xdp: %v says that a privilege is lacking", e)
		}
	}),
}, {
	name:  "update with the old program but without the flag",
	given: linked("old", native),
	kernel: func(p *place) error {
		return kernel.LinkUpdateRaw(p.link, p.fd("new"), p.fd("old"), 0)
	}, want: refused(unix.EINVAL, ""),
	cannot: "an Expectation brings the flag and the descriptor, never one without the other",
}, {
	name:  "update with an old descriptor that is no program",
	given: linked("old", native),
	kernel: func(p *place) error {
		return kernel.LinkUpdate(p.link, p.fd("new"), p.notBPF())
	}, want: refused(unix.EINVAL, ""),
	cannot: "an expectation is a loaded program, a program's id or any, never a bare descriptor",
}, {
	name:  "update that expects a closed program",
	given: linked("old", native),
	kernel: func(p *place) error {
		return kernel.LinkUpdate(p.link, p.fd("new"), none)
	}, want: refused(unix.EBADF, ""),
	xdp: func(p *place) error {
		closed := p.load("closed", nil)
		closed.Close()
		return p.adopt().Replace(xdp.ReplaceOptions{Program: p.prog("new"), Expect: xdp.Expect(closed)})
	}, gives: fails(xdp.ErrInvalid, says("closed")),
}, {
	name: "update to a program of another type",
	given: all(linked("old", native), func(p *place) {
		p.load("new", func(s *ebpf.ProgramSpec) {
			s.Type, s.AttachType = ebpf.SocketFilter, ebpf.AttachNone
			s.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
		})
	}),
	kernel: updateAny("new"), want: refused(unix.EINVAL, ""),
	xdp: update("new", anything), gives: fails(xdp.ErrInvalid, says("SocketFilter")),
}, {
	name:   "update from attach type BPF_XDP to none",
	given:  all(linked("old", native), func(p *place) { noAttachType(p, "new") }),
	kernel: updateAny("new"), want: refused(unix.EINVAL, ""),
	xdp: update("new", program("old")), gives: fails(xdp.ErrAttachType),
}, {
	name:   "update from no attach type to BPF_XDP",
	given:  all(func(p *place) { noAttachType(p, "old") }, linked("old", native)),
	kernel: updateAny("new"), want: refused(unix.EINVAL, ""),
	xdp: update("new", program("old")), gives: fails(xdp.ErrAttachType),
}, {
	name:   "netlink replaces between attach types",
	given:  all(func(p *place) { noAttachType(p, "old") }, attached("old", native)),
	kernel: sendExpecting("new", "old"), want: ok("native new"),
	xdp: attach(xdp.Native, "new", program("old")), gives: done("native new"),
}, {
	name:  "update to a program that copes with fragments",
	since: fragsSince, lacking: noFrags,
	given:  all(linked("old", native), func(p *place) { p.frags("new") }),
	kernel: updateAny("new"), want: ok("native new"),
	xdp: update("new", program("old")), gives: done("native new"),
}, {
	name:  "update from a program that copes with fragments to one that does not",
	since: fragsSince, lacking: noFrags,
	given:  all(func(p *place) { p.frags("old") }, linked("old", native)),
	kernel: updateAny("new"), want: ok("native new"),
	xdp: update("new", program("old")), gives: done("native new"),
}, {
	name:  "update to a program without fragments where the peer's MTU is big",
	since: fragsSince, lacking: noFrags,
	given:  all(farMTU(9000), func(p *place) { p.frags("old") }, linked("old", native)),
	kernel: updateAny("new"), want: refused(unix.ERANGE, ""),
	xdp: update("new", program("old")), gives: fails(xdp.ErrMTU, func(p *place, e *xdp.Error) {
		if e.MaxMTU != vethMax {
			p.Errorf("xdp: the error says that MTU %d would do, want %d", e.MaxMTU, vethMax)
		}
		farMTU(e.MaxMTU)(p)
		if err := kernel.LinkUpdate(p.link, p.fd("new"), p.fd("old")); err != nil {
			p.Errorf("with a peer of MTU %d: %v", e.MaxMTU, err)
		}
		p.must(kernel.LinkUpdateAny(p.link, p.fd("old")))
	}),
}, {
	// The driver sets the peer's limit when a program comes in by an attach,
	// and the update goes past it.
	name:  "after an update from fragments to none the peer's MTU can be raised",
	since: fragsSince, lacking: noFrags,
	given:  fragsToNone,
	kernel: func(p *place) error { return p.veth.Far.Conn.SetMTU(p.veth.FarIndex, 9000) }, want: ok("native new"),
	cannot: "package xdp sets no MTU",
	differs: []difference{{
		on: since619, why: "an update sets the limit as an attach does",
		want:   refused(unix.EINVAL, mtuMaximum),
		cannot: "package xdp sets no MTU",
	}},
}, {
	name:  "once the peer's MTU was raised so, the link takes no program without fragments",
	since: fragsSince, lacking: noFrags,
	given: all(fragsToNone, func(p *place) {
		err := p.veth.Far.Conn.SetMTU(p.veth.FarIndex, 9000)
		if err != nil && !since619.are(running) {
			p.Fatal(err)
		}
	}),
	kernel: updateAny("newer"), want: refused(unix.ERANGE, ""),
	xdp: update("newer", program("new")), gives: fails(xdp.ErrMTU),
	differs: []difference{{
		on: since619, why: "it can't be raised",
		want: ok("native newer"), gives: done("native newer"),
	}},
}, {
	name:  "update to a program that is bound to another device",
	since: boundSince, lacking: noBound,
	given: all(linked("old", native), anotherVeth, func(p *place) {
		p.bound("new", p.ns.Device(p.T, otherDev).Index)
	}),
	kernel: updateAny("new"), want: ok("native new"),
	xdp: updateBound("new", otherDev), gives: fails(xdp.ErrDeviceBound),
	differs: []difference{{
		on: since619, why: boundWhy,
		want: refused(unix.EINVAL, ""), gives: fails(xdp.ErrDeviceBound),
	}},
}, {
	name:  "update to a program that is bound to a device which the caller does not name",
	since: boundSince, lacking: noBound,
	given:  all(linked("old", native), func(p *place) { p.bound("new", p.index) }),
	kernel: updateAny("new"), want: ok("native new"),
	// The kernel does not tell for which device it was loaded.
	xdp: update("new", anything), gives: fails(xdp.ErrDeviceBound, says("BoundTo")),
}, {
	name:  "update to a program that is bound to the link's device",
	since: boundSince, lacking: noBound,
	given:  all(linked("old", native), func(p *place) { p.bound("new", p.index) }),
	kernel: updateAny("new"), want: ok("native new"),
	xdp: updateBound("new", ""), gives: done("native new"),
}, {
	name:  "update of a generic link to a device-bound program",
	since: boundSince, lacking: noBound,
	given:  all(linked("old", skb), func(p *place) { p.bound("new", p.index) }),
	kernel: updateAny("new"), want: ok("generic new"),
	xdp: updateBound("new", ""), gives: fails(xdp.ErrDeviceBound, says("generic")),
	differs: []difference{{
		on: since619, why: boundWhy,
		want: refused(unix.EINVAL, ""), gives: fails(xdp.ErrDeviceBound, says("generic")),
	}},
}, {
	name:   "update to a program for a devmap",
	given:  all(linked("old", native), func(p *place) { p.attachType("new", ebpf.AttachXDPDevMap) }),
	kernel: updateAny("new"), want: refused(unix.EINVAL, ""),
	xdp: update("new", anything), gives: fails(xdp.ErrDeviceBound),
}, {
	name:   "detach of a link",
	given:  linked("old", native),
	kernel: func(p *place) error { return kernel.LinkDetach(p.link) }, want: ok(empty),
	xdp: func(p *place) error { return p.adopt().Detach() }, gives: done(empty),
}, {
	name:   "detach of a defunct link",
	given:  defunct,
	kernel: func(p *place) error { return kernel.LinkDetach(p.link) }, want: ok(empty),
	xdp: func(p *place) error { return p.adopt().Detach() }, gives: fails(xdp.ErrGone),
}, {
	name:   "update of a defunct link",
	given:  defunct,
	kernel: updateAny("new"), want: refused(unix.ENOLINK, ""),
	xdp: update("new", anything), gives: fails(xdp.ErrGone),
}, {
	name:   "update with the right old program of a defunct link",
	given:  defunct,
	kernel: updateExpecting("new", "old"), want: refused(unix.ENOLINK, ""),
	xdp: update("new", program("old")), gives: fails(xdp.ErrGone),
}, {
	name:  "a defunct link shows its program and ifindex 0",
	given: defunct,
	kernel: func(p *place) error {
		if info := p.info(); info.Ifindex != 0 || info.ProgID != p.id("old") {
			p.Errorf("kernel: info is %+v, want ifindex 0 and program %d", info, p.id("old"))
		}
		return nil
	}, want: ok(empty),
	xdp: func(p *place) error {
		info, err := p.adopt().Info()
		if !info.Defunct() || info.ProgramID != p.id("old") {
			p.Errorf("xdp: info is %+v, want defunct and program %d", info, p.id("old"))
		}
		return err
	}, gives: done(empty),
}, {
	name:  "a defunct link can be pinned, opened and found by its id",
	given: defunct,
	kernel: func(p *place) error {
		pin := p.pin()
		p.must(kernel.Pin(p.link, pin))
		opened, err := kernel.OpenPin(pin)
		p.must(err)
		p.must(opened.Close())
		byID, err := kernel.LinkByID(p.info().ID)
		p.must(err)
		return byID.Close()
	}, want: ok(empty),
	xdp: func(p *place) error {
		pin, l := p.pin(), p.adopt()
		p.must(l.Persist(pin))
		opened, err := xdp.OpenPinned(pin)
		p.must(err)
		p.must(opened.Close())
		info, err := l.Info()
		p.must(err)
		byID, err := xdp.OpenID(info.ID)
		p.must(err)
		return byID.Close()
	}, gives: done(empty),
}, {
	name:  "a hook is empty for others after its link was detached by force",
	given: defunct,
	kernel: func(p *place) error {
		return p.create("new", native)
	}, want: ok("native new"),
	xdp: attachLink(xdp.Native, "new"), gives: done("native new"),
}, {
	name:  "pin onto a path that exists",
	given: linked("old", native),
	kernel: func(p *place) error {
		pin := p.pin()
		p.must(kernel.Pin(p.link, pin))
		return kernel.Pin(p.link, pin)
	}, want: refused(unix.EEXIST, ""),
	xdp: func(p *place) error {
		pin, l := p.pin(), p.adopt()
		p.must(l.Persist(pin))
		return l.Persist(pin)
	}, gives: fails(xdp.ErrExists),
}, {
	name:   "pin outside a bpffs",
	given:  linked("old", native),
	kernel: func(p *place) error { return kernel.Pin(p.link, filepath.Join(p.TempDir(), "link")) }, want: refused(unix.EPERM, ""),
	xdp: func(p *place) error { return p.adopt().Persist(filepath.Join(p.TempDir(), "link")) }, gives: fails(xdp.ErrInvalid, says("bpffs")),
}, {
	name:   "pin in a bpffs by a name with a dot",
	given:  linked("old", native),
	kernel: func(p *place) error { return kernel.Pin(p.link, p.pin()+".0") }, want: refused(unix.EPERM, ""),
	xdp: func(p *place) error { return p.adopt().Persist(p.pin() + ".0") }, gives: fails(xdp.ErrInvalid, says("dot")),
}, {
	name:  "open what is pinned and no link",
	given: func(p *place) { p.prog("old") },
	kernel: func(p *place) error {
		pin := p.pin()
		p.must(kernel.Pin(kernel.FD(p.fd("old")), pin))
		fd, err := kernel.OpenPin(pin)
		if err == nil {
			fd.Close()
		}
		return err
	}, want: ok(empty),
	xdp: func(p *place) error {
		pin := p.pin()
		p.must(kernel.Pin(kernel.FD(p.fd("old")), pin))
		_, err := xdp.OpenPinned(pin)
		return err
	}, gives: fails(xdp.ErrInvalid),
}, {
	name: "open a pin that is not there",
	kernel: func(p *place) error {
		_, err := kernel.OpenPin(p.pin())
		return err
	}, want: refused(unix.ENOENT, ""),
	xdp: func(p *place) error {
		_, err := xdp.OpenPinned(p.pin())
		return err
	}, gives: fails(xdp.ErrNotFound),
}, {
	name: "a link of the cilium library ends when it is unreachable, and one of xdp does not",
	kernel: func(p *place) error {
		func() {
			prog := p.prog("new")
			p.ns.In(p.T, func() error {
				_, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: p.index, Flags: link.XDPDriverMode})
				return err
			})
		}()
		collected := kerneltest.Eventually(func() bool { runtime.GC(); return p.state() == empty })
		if !collected {
			p.Error("kernel: the unreachable link is still attached")
		}
		return nil
	}, want: ok(empty),
	xdp: func(p *place) error {
		var fd int
		func() {
			l, err := p.hook(xdp.Native).AttachLink(p.prog("new"))
			p.must(err)
			fd = l.FD()
		}()
		p.Cleanup(func() { unix.Close(fd) })
		for range 5 {
			runtime.GC()
		}
		p.stays("native new")
		return nil
	}, gives: done("native new"),
}, {
	name: "the attach type of an ELF section and that of a program built by hand differ",
	given: func(p *place) {
		noAttachType(p, "old")
		p.must(p.create("old", native))
		p.programs["new"] = kerneltest.Load(p.T, "pass", nil).Programs["xdp_pass"]
	},
	kernel: updateAny("new"), want: refused(unix.EINVAL, ""),
	xdp: update("new", anything), gives: fails(xdp.ErrAttachType, says("NoAttachType")),
}}
