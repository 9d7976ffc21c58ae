package conformance

import (
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// The kernel's sentences.
const (
	alreadyAttached = "XDP program already attached"
	notExpected     = "Active program does not match expected"
	bothModes       = "Native and generic XDP can't be active at the same time"
	activeLink      = "Can't replace active BPF XDP link"
	noNative        = "Underlying driver does not support XDP in native mode"
	upperHasProgram = "Cannot attach when an upper device already has a program"
	peerMTU         = "veth: Peer MTU is too large to set XDP"
	mtuMaximum      = "mtu greater than device maximum"
)

// send sends a program by netlink as the kernel half of a row.
func send(name string, flags uint32) func(*place) error {
	return func(p *place) error { return p.set(p.fd(name), flags) }
}

func sendDetach(flags uint32) func(*place) error {
	return func(p *place) error { return p.set(none, flags) }
}

// sendExpecting sends a program with XDP_FLAGS_REPLACE and the other as what is
// expected.
func sendExpecting(name, expected string) func(*place) error {
	return func(p *place) error { return p.replace(p.fd(name), p.fd(expected), native) }
}

func maxMTU(mtu int, name string) func(*place, *xdp.Error) {
	return func(p *place, e *xdp.Error) {
		p.Helper()
		if e.MaxMTU != mtu {
			p.Errorf("xdp: the error says that MTU %d would do, want %d", e.MaxMTU, mtu)
		}
		p.must(p.veth.Far.Conn.SetMTU(p.veth.FarIndex, e.MaxMTU))
		if err := p.set(p.fd(name), native); err != nil {
			p.Errorf("with a peer of MTU %d: %v", e.MaxMTU, err)
		}
		p.must(p.set(none, native))
	}
}

const (
	vethMax  = 3506 // the largest MTU of a veth whose peer has a program without fragments
	noFrags  = "programs that cope with fragments"
	noBound  = "programs bound to a device that run on the host"
	otherDev = "dev0"
)

var (
	fragsSince = version{5, 18}
	boundSince = version{6, 3}
)

// port makes the interface at hand the port of a new master, and gives that a
// program; the port has one already if name is not empty.
func port(kind, name string) func(*place) {
	return func(p *place) {
		p.Helper()
		p.add(kind, "master0")
		master := p.ns.Device(p.T, "master0").Index
		// A bond takes only interfaces that are down.
		p.must(p.ns.Conn.SetUp(p.index, false))
		p.must(p.ns.Conn.SetMaster(p.index, master))
		if name != "" {
			p.must(p.set(p.fd(name), native))
		}
		p.must(p.ns.Conn.SetXDP(master, p.fd("masters"), skb))
	}
}

// portLinked is the same with a link at the port.
func portLinked(kind string) func(*place) {
	return func(p *place) {
		p.Helper()
		p.add(kind, "master0")
		master := p.ns.Device(p.T, "master0").Index
		p.must(p.ns.Conn.SetUp(p.index, false))
		p.must(p.ns.Conn.SetMaster(p.index, master))
		p.must(p.create("old", native))
		p.must(p.ns.Conn.SetXDP(master, p.fd("masters"), skb))
	}
}

// namesMaster checks that the error is about the master.
func namesMaster(kind string) result {
	return fails(xdp.ErrPort, says(kind+" master0"), rival("masters", xdp.Generic, xdp.HeldByNetlink))
}

// portRows are the rows of one kind of master.
func portRows(kind string) []row {
	const why = "a port and its master are independent"
	older := before(version{5, 15})
	a := "the port of a " + kind + " that has a program "
	return []row{{
		name:   a + "takes no program",
		given:  port(kind, ""),
		kernel: send("new", native), want: refused(unix.EEXIST, upperHasProgram),
		xdp: attach(xdp.Native, "new", nobody), gives: namesMaster(kind),
		differs: []difference{{on: older, why: why, want: ok("native new"), gives: done("native new")}},
	}, {
		name:   a + "lets no program be replaced",
		given:  port(kind, "old"),
		kernel: sendExpecting("new", "old"), want: refused(unix.EEXIST, upperHasProgram),
		xdp: attach(xdp.Native, "new", program("old")), gives: namesMaster(kind),
		differs: []difference{{on: older, why: why, want: ok("native new"), gives: done("native new")}},
	}, {
		name:   a + "lets no program be detached",
		given:  port(kind, "old"),
		kernel: sendDetach(native), want: refused(unix.EEXIST, upperHasProgram),
		xdp: detach(xdp.Native, program("old")), gives: namesMaster(kind),
		differs: []difference{{on: older, why: why, want: ok(empty), gives: done(empty)}},
	}, {
		name:   a + "takes no link",
		given:  port(kind, ""),
		kernel: createLink("new", native), want: refused(unix.EEXIST, ""),
		xdp: attachLink(xdp.Native, "new"), gives: namesMaster(kind),
		differs: []difference{{on: older, why: why, want: ok("native new"), gives: done("native new")}},
	}, {
		name:   a + "lets a link be updated",
		given:  portLinked(kind),
		kernel: updateAny("new"), want: ok("native new"),
		xdp: update("new", program("old")), gives: done("native new"),
	}}
}

// racers is how many threads attach at once.
const racers = 8

// race lets them all attach a program of their own to the empty hook, and
// returns an error unless exactly one got it.
func race(p *place, attach func(i int, prog *ebpf.Program) error) error {
	p.Helper()
	var progs []*ebpf.Program
	for i := range racers {
		progs = append(progs, p.prog("racer"+string(rune('0'+i))))
	}
	for range 20 {
		errs := make([]error, racers)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i, prog := range progs {
			wg.Go(func() {
				<-start
				errs[i] = attach(i, prog)
			})
		}
		close(start)
		wg.Wait()
		winner := slices.Index(errs, nil)
		if winner < 0 || slices.Contains(errs[winner+1:], nil) {
			p.Errorf("%s: of %d attaches at once the answers are %v, want exactly one success", p.half, racers, errs)
			return nil
		}
		if state, want := p.state(), "native racer"+string(rune('0'+winner)); state != want {
			p.Errorf("%s: attached is %q, and the winner's is %q", p.half, state, want)
		}
		p.must(p.set(none, native))
	}
	return nil
}

var netlinkRows = slices.Concat([]row{{
	name:   "an attach without flags is native on a veth",
	kernel: send("new", 0), want: ok("native new"),
	xdp: attach(xdp.Auto, "new", nobody), gives: done("native new"),
}, {
	name:   "an attach without flags is native on a tap",
	given:  onA("tap"),
	kernel: send("new", 0), want: ok("native new"),
	xdp: attach(xdp.Auto, "new", nobody), gives: done("native new"),
}, {
	name:   "an attach without flags is generic on an ifb",
	given:  onA("ifb"),
	kernel: send("new", 0), want: ok("generic new"),
	xdp: attach(xdp.Auto, "new", nobody), gives: done("generic new"),
}, {
	name:   "an attach without flags is generic on a bridge",
	given:  onA("bridge"),
	kernel: send("new", 0), want: ok("generic new"),
	xdp: attach(xdp.Auto, "new", nobody), gives: done("generic new"),
}, {
	name:   "an attach without flags silently replaces what is there",
	given:  attached("old", 0),
	kernel: send("new", 0), want: ok("native new"),
	xdp: attach(xdp.Native, "new", anything), gives: done("native new"),
}, {
	name:   "an attach without flags replaces a program by itself",
	given:  attached("old", 0),
	kernel: send("old", 0), want: ok("native old"),
	xdp: attach(xdp.Native, "old", anything), gives: done("native old"),
}, {
	// Package xdp says "empty" by an expectation of -1, not by this flag.
	name:   "UPDATE_IF_NOEXIST refuses an occupied hook",
	given:  attached("old", 0),
	kernel: send("new", unix.XDP_FLAGS_UPDATE_IF_NOEXIST), want: refused(unix.EBUSY, alreadyAttached),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink)),
}, {
	name:   "UPDATE_IF_NOEXIST refuses the same program",
	given:  attached("old", 0),
	kernel: send("old", unix.XDP_FLAGS_UPDATE_IF_NOEXIST), want: refused(unix.EBUSY, alreadyAttached),
	xdp: attach(xdp.Native, "old", nobody), gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink)),
}, {
	name:   "replace with the right expected program",
	given:  attached("old", native),
	kernel: sendExpecting("new", "old"), want: ok("native new"),
	xdp: attach(xdp.Native, "new", program("old")), gives: done("native new"),
}, {
	name:  "replace with an expected program opened by its id",
	given: attached("old", native),
	kernel: func(p *place) error {
		fd, err := kernel.ProgramByID(p.id("old"))
		p.must(err)
		defer fd.Close()
		return p.replace(p.fd("new"), int(fd), native)
	}, want: ok("native new"),
	xdp: attach(xdp.Native, "new", programID("old")), gives: done("native new"),
}, {
	name:   "replace with a wrong expected program",
	given:  attached("old", native),
	kernel: sendExpecting("new", "other"), want: refused(unix.EEXIST, notExpected),
	xdp: attach(xdp.Native, "new", program("other")), gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink)),
}, {
	name:   "replace expecting an empty hook that is occupied",
	given:  attached("old", native),
	kernel: func(p *place) error { return p.replace(p.fd("new"), none, native) }, want: refused(unix.EEXIST, notExpected),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink)),
}, {
	name:   "replace expecting a program on an empty hook",
	kernel: sendExpecting("new", "other"), want: refused(unix.EEXIST, notExpected),
	xdp: attach(xdp.Native, "new", program("other")), gives: fails(xdp.ErrConflict, noRival),
}, {
	name:   "replace expecting an empty hook that is empty",
	kernel: func(p *place) error { return p.replace(p.fd("new"), none, native) }, want: ok("native new"),
	xdp: attach(xdp.Native, "new", nobody), gives: done("native new"),
}, {
	name: "of eight attaches at once that expect an empty hook one succeeds",
	kernel: func(p *place) error {
		return race(p, func(_ int, prog *ebpf.Program) error { return p.replace(prog.FD(), none, native) })
	}, want: ok(empty),
	xdp: func(p *place) error {
		hooks := make([]*xdp.Hook, racers)
		for i := range hooks {
			hooks[i] = p.hook(xdp.Native)
		}
		return race(p, func(i int, prog *ebpf.Program) error { return hooks[i].Attach(prog, xdp.Empty) })
	}, gives: done(empty),
}, {
	name:   "replace expecting a descriptor that is no program",
	given:  attached("old", native),
	kernel: func(p *place) error { return p.replace(p.fd("new"), p.notBPF(), native) }, want: refused(unix.EINVAL, ""),
	cannot: "an expectation is a loaded program, a program's id, empty or any, never a bare descriptor",
}, {
	name:  "replace without an expectation",
	given: attached("old", native),
	kernel: func(p *place) error {
		return p.set(p.fd("new"), unix.XDP_FLAGS_REPLACE|native)
	}, want: refused(unix.EINVAL, ""),
	// The zero Expectation is the nearest to it.
	xdp:   attach(xdp.Native, "new", func(*place) xdp.Expectation { return xdp.Expectation{} }),
	gives: fails(xdp.ErrInvalid, says("the expectation is \"nothing\"")),
}, {
	name:   "replace expecting a bad descriptor",
	given:  attached("old", native),
	kernel: func(p *place) error { return p.replace(p.fd("new"), 1<<20, native) }, want: refused(unix.EBADF, ""),
	// Its descriptor is -1, which to the kernel means an empty hook.
	xdp: func(p *place) error {
		closed := p.load("closed", nil)
		closed.Close()
		return p.hook(xdp.Native).Attach(p.prog("new"), xdp.Expect(closed))
	}, gives: fails(xdp.ErrInvalid, says("closed")),
}, {
	name:   "attaching descriptor -1 detaches",
	given:  attached("old", native),
	kernel: func(p *place) error { return p.replace(none, p.fd("old"), native) }, want: ok(empty),
	// It is the descriptor of a program that was closed.
	xdp: func(p *place) error {
		closed := p.load("closed", nil)
		closed.Close()
		return p.hook(xdp.Native).Attach(closed, xdp.Any)
	}, gives: fails(xdp.ErrInvalid, says("closed")),
}, {
	name:  "an expectation without the REPLACE flag is ignored",
	given: attached("old", native),
	kernel: func(p *place) error {
		other := int32(p.fd("other"))
		return p.ns.Conn.SendXDP(p.index, rtnl.XDPRequest{FD: int32(p.fd("new")), Flags: native, Expected: &other})
	}, want: ok("native new"),
	cannot: "an Expectation brings the flag and the descriptor, never one without the other",
}, {
	name:   "detach without an expectation",
	given:  attached("old", native),
	kernel: sendDetach(0), want: ok(empty),
	xdp: detach(xdp.Native, anything), gives: done(empty),
}, {
	name:   "detach with the right expected program",
	given:  attached("old", native),
	kernel: func(p *place) error { return p.replace(none, p.fd("old"), native) }, want: ok(empty),
	xdp: detach(xdp.Native, program("old")), gives: done(empty),
}, {
	name:   "detach with a wrong expected program",
	given:  attached("old", native),
	kernel: func(p *place) error { return p.replace(none, p.fd("other"), native) }, want: refused(unix.EEXIST, notExpected),
	xdp: detach(xdp.Native, program("other")), gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink)),
}, {
	name:   "detach on an empty hook succeeds and does nothing",
	kernel: sendDetach(0), want: ok(empty),
	xdp: detach(xdp.Auto, anything), gives: fails(xdp.ErrNotAttached),
}, {
	name:   "detach in native mode on an empty hook succeeds and does nothing",
	kernel: sendDetach(native), want: ok(empty),
	xdp: detach(xdp.Native, anything), gives: fails(xdp.ErrNotAttached),
}, {
	name:   "detach in generic mode on an empty hook succeeds and does nothing",
	kernel: sendDetach(skb), want: ok(empty),
	xdp: detach(xdp.Generic, anything), gives: fails(xdp.ErrNotAttached),
}, {
	name:   "attach in native mode where a generic program is",
	given:  attached("old", skb),
	kernel: send("new", native), want: refused(unix.EEXIST, bothModes),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrConflict, rival("old", xdp.Generic, xdp.HeldByNetlink)),
}, {
	name:   "attach without a mode where a generic program is",
	given:  attached("old", skb),
	kernel: send("new", 0), want: refused(unix.EEXIST, bothModes),
	// Auto is the mode in use, so that what is expected can be there.
	xdp: attach(xdp.Auto, "new", program("old")), gives: done("generic new"),
}, {
	name:   "attach in generic mode where a native program is",
	given:  attached("old", native),
	kernel: send("new", skb), want: refused(unix.EEXIST, bothModes),
	xdp: attach(xdp.Generic, "new", nobody), gives: fails(xdp.ErrConflict, rival("old", xdp.Native, xdp.HeldByNetlink)),
}, {
	name:   "detach without a mode leaves a generic program and succeeds",
	given:  attached("old", skb),
	kernel: sendDetach(0), want: ok("generic old"),
	// Auto is the mode in use.
	xdp: detach(xdp.Auto, program("old")), gives: done(empty),
}, {
	name:   "detach in native mode leaves a generic program and succeeds",
	given:  attached("old", skb),
	kernel: sendDetach(native), want: ok("generic old"),
	xdp: detach(xdp.Native, program("old")), gives: fails(xdp.ErrNotAttached, says("attached in generic mode")),
}, {
	name:   "generic and native mode together",
	kernel: send("new", skb|native), want: refused(unix.EINVAL, ""),
	cannot: "a Mode is one of them",
}, {
	name:   "an unknown flag",
	kernel: send("new", 1<<10), want: refused(unix.EINVAL, ""),
	cannot: "flags come from the Mode and the Expectation alone",
}, {
	name:   "offload mode on a veth",
	kernel: send("new", unix.XDP_FLAGS_HW_MODE), want: refused(unix.EINVAL, ""),
	xdp: attach(xdp.Offload, "new", nobody), gives: fails(xdp.ErrNotSupported, says("does not offload programs")),
}, {
	name:   "native mode on an ifb",
	given:  onA("ifb"),
	kernel: send("new", native), want: refused(unix.EOPNOTSUPP, noNative),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrNotSupported, says("mode generic")),
}, {
	name:   "native mode on a vxlan",
	given:  onA("vxlan"),
	kernel: send("new", native), want: refused(unix.EOPNOTSUPP, noNative),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrNotSupported, says("mode generic")),
}, {
	name:   "native mode on a macvlan",
	given:  onA("macvlan"),
	kernel: send("new", native), want: refused(unix.EOPNOTSUPP, noNative),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrNotSupported, says("mode generic")),
}, {
	name: "a program of another type",
	given: func(p *place) {
		p.load("new", func(s *ebpf.ProgramSpec) {
			s.Type, s.AttachType = ebpf.SocketFilter, ebpf.AttachNone
			s.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
		})
	},
	kernel: send("new", native), want: refused(unix.EINVAL, ""),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrInvalid, says("SocketFilter")),
}, {
	name:   "a program for a devmap",
	given:  func(p *place) { p.attachType("new", ebpf.AttachXDPDevMap) },
	kernel: send("new", native), want: refused(unix.EINVAL, ""),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrDeviceBound, says("devmap")),
}, {
	name:   "a program for a cpumap",
	given:  func(p *place) { p.attachType("new", ebpf.AttachXDPCPUMap) },
	kernel: send("new", native), want: refused(unix.EINVAL, ""),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrDeviceBound, says("cpumap")),
}, {
	name:   "a peer whose MTU does not fit into a page",
	given:  farMTU(vethMax + 1),
	kernel: send("new", native), want: refused(unix.ERANGE, peerMTU),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrMTU, maxMTU(vethMax, "new")),
}, {
	name:   "a peer whose MTU just fits into a page",
	given:  farMTU(vethMax),
	kernel: send("new", native), want: ok("native new"),
	xdp: attach(xdp.Native, "new", nobody), gives: done("native new"),
}, {
	name:   "the interface's own MTU does not matter",
	given:  func(p *place) { p.must(p.ns.Conn.SetMTU(p.index, 9000)) },
	kernel: send("new", native), want: ok("native new"),
	xdp: attach(xdp.Native, "new", nobody), gives: done("native new"),
}, {
	name:  "a program that copes with fragments takes any MTU",
	since: fragsSince, lacking: noFrags,
	given:  all(farMTU(9000), func(p *place) { p.frags("new") }),
	kernel: send("new", native), want: ok("native new"),
	xdp: attach(xdp.Native, "new", nobody), gives: done("native new"),
}, {
	name:   "generic mode takes any MTU",
	given:  farMTU(9000),
	kernel: send("new", skb), want: ok("generic new"),
	xdp: attach(xdp.Generic, "new", nobody), gives: done("generic new"),
}, {
	name:  "the peer's MTU cannot be raised over what the program can read",
	given: attached("old", native),
	kernel: func(p *place) error {
		p.must(p.veth.Far.Conn.SetMTU(p.veth.FarIndex, vethMax))
		return p.veth.Far.Conn.SetMTU(p.veth.FarIndex, vethMax+1)
	}, want: refused(unix.EINVAL, mtuMaximum),
	cannot: "package xdp sets no MTU",
}, {
	name:  "a device-bound program on its device",
	since: boundSince, lacking: noBound,
	given:  func(p *place) { p.bound("new", p.index) },
	kernel: send("new", native), want: ok("native new"),
	xdp: attach(xdp.Native, "new", nobody), gives: done("native new"),
}, {
	name:  "a device-bound program on another device",
	since: boundSince, lacking: noBound,
	given:  all(anotherVeth, func(p *place) { p.bound("new", p.index); p.at(otherDev) }),
	kernel: send("new", native), want: refused(unix.EINVAL, ""),
	xdp: attach(xdp.Native, "new", nobody), gives: fails(xdp.ErrDeviceBound),
}, {
	name:  "a device-bound program in generic mode",
	since: boundSince, lacking: noBound,
	given:  func(p *place) { p.bound("new", p.index) },
	kernel: send("new", skb), want: refused(unix.EINVAL, ""),
	xdp: attach(xdp.Generic, "new", nobody), gives: fails(xdp.ErrDeviceBound, says("generic")),
}, {
	name:  "a program stays attached while the interface goes down and up",
	given: attached("old", native),
	kernel: func(p *place) error {
		p.must(p.ns.Conn.SetUp(p.index, false))
		return p.ns.Conn.SetUp(p.index, true)
	}, want: ok("native old"),
	cannot: "package xdp sets no interface up or down",
}, {
	name: "a program stays attached when its last descriptor closes",
	kernel: func(p *place) error {
		p.must(p.set(p.fd("new"), native))
		p.must(p.prog("new").Close())
		p.stays("native new")
		return nil
	}, want: ok("native new"),
	xdp: func(p *place) error {
		p.must(p.hook(xdp.Native).Attach(p.prog("new"), xdp.Empty))
		p.must(p.prog("new").Close())
		p.stays("native new")
		return nil
	}, gives: done("native new"),
}}, portRows("bridge"), portRows("bond"))

// anotherVeth makes a second pair, both ends in Near.
func anotherVeth(p *place) {
	p.Helper()
	p.must(p.ns.Conn.AddVeth(otherDev, "dev0peer", -1))
}
