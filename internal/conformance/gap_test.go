package conformance

import (
	"errors"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// replacements is how many times a program is replaced while packets come, each
// time when some more have come. Where that leaves a gap, a packet is waited for in
// each, and there and back again is enough.
var replacements = kerneltest.HostRounds(64)

const (
	gaps          = 2
	packetsBefore = 20
	packetRate    = 5000 // a second, which an emulated machine can send
)

// dropping is the name of one of two programs that drop every packet, so that a
// packet which gets through met neither.
func dropping(i int) string { return [...]string{"even", "odd"}[i%2] }

// under measures a way to replace: prepare attaches program "even", and replace
// puts that of number i in place of the one before. A way that is not atomic calls
// between when its program is off.
func under(mode uint32, prepare func(*place, *xdp.Hook) error, replace func(p *place, h *xdp.Hook, i int) error, atomic bool) func(*place) error {
	return func(p *place) error {
		p.Helper()
		for i := range 2 {
			p.load(dropping(i), func(s *ebpf.ProgramSpec) {
				s.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()} // XDP_DROP
			})
		}
		if atomic {
			// Without grace periods so many replacements take no time. Where
			// there is a gap, the wait for one is what makes it wide.
			kerneltest.Warm(p.T, p.prog(dropping(0)), p.prog(dropping(1)))
		}
		m := xdp.Native
		if mode == skb {
			m = xdp.Generic
		}
		hook := p.hook(m)
		if err := prepare(p, hook); err != nil {
			return err
		}
		before := p.state()
		f := kerneltest.StartFlood(p.T, p.veth, kerneltest.FloodOptions{
			Port: 7000, Packets: 1 << 20, Duration: 50 * time.Second, Rate: packetRate,
		})
		f.AwaitSent(packetsBefore)
		wanted, withGap := replacements, 0
		if !atomic {
			wanted = gaps
		}
		// How wide a gap is depends on the machine, and on chance whether a packet
		// gets into it. That there is one does not: between the two calls, a packet
		// comes through, however long it takes.
		p.between = func() {
			if before := f.Received(); kerneltest.Eventually(func() bool { return f.Received() > before }) {
				withGap++
			}
		}
		for made := 1; made <= wanted; made++ {
			if err := replace(p, hook, made); err != nil {
				return err
			}
			f.AwaitSent(f.Sent() + packetsBefore)
		}
		if !f.Running() {
			p.Errorf("%s: the packets ended before the replacements did", p.half)
		}
		unprotected := f.Received()
		p.Logf("%s: of %d packets %d met no program in %d replacements", p.half, f.Sent(), unprotected, wanted)
		if now := p.state(); now != before {
			p.Errorf("%s: attached is %q after an even number of replacements, was %q", p.half, now, before)
		}
		// That packets count which met no program is seen once there is none.
		p.uncover(hook)
		if !kerneltest.Eventually(func() bool { return f.Received() > unprotected }) {
			p.Errorf("%s: no packet is counted without a program", p.half)
		}
		f.Stop()
		switch {
		case atomic && unprotected > 0:
			p.Errorf("%s: %d packets met no program, want 0", p.half, unprotected)
		case !atomic && withGap != gaps:
			p.Errorf("%s: a packet met no program in %d of %d replacements, want all", p.half, withGap, gaps)
		}
		return nil
	}
}

// uncover takes the program off.
func (p *place) uncover(h *xdp.Hook) {
	p.Helper()
	switch {
	case p.link >= 0:
		p.must(kernel.LinkDetach(p.link))
	case p.own != nil:
		p.must(p.own.Detach())
	default:
		p.must(h.Detach(xdp.Any))
	}
}

// emptied waits for a hook whose link was closed.
func (p *place) emptied() {
	p.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if d, err := p.ns.Conn.DeviceByIndex(p.index); err == nil && d.XDP == (rtnl.XDP{}) {
			return
		}
	}
	p.Fatalf("%s: a closed link stays attached", p.half)
}

func gapRows() []row {
	var rows []row
	for _, mode := range []struct {
		name  string
		flags uint32
	}{{"native", native}, {"generic", skb}} {
		flags := mode.flags
		byNetlink := func(p *place, h *xdp.Hook) error {
			if p.half == "kernel" {
				return p.set(p.fd(dropping(0)), flags)
			}
			return h.Attach(p.prog(dropping(0)), xdp.Empty)
		}
		byLink := func(p *place, h *xdp.Hook) (err error) {
			if p.half == "kernel" {
				return p.create(dropping(0), flags)
			}
			p.own, err = h.AttachLink(p.prog(dropping(0)))
			return err
		}
		for _, way := range []struct {
			name    string
			prepare func(*place, *xdp.Hook) error
			kernel  func(p *place, h *xdp.Hook, i int) error
			xdp     func(p *place, h *xdp.Hook, i int) error
			atomic  bool
		}{{
			name: "LINK_UPDATE leaves no gap", prepare: byLink, atomic: true,
			kernel: func(p *place, _ *xdp.Hook, i int) error {
				return kernel.LinkUpdateAny(p.link, p.fd(dropping(i)))
			},
			xdp: func(p *place, _ *xdp.Hook, i int) error {
				return p.own.Replace(xdp.ReplaceOptions{Program: p.prog(dropping(i)), Expect: xdp.Any})
			},
		}, {
			name: "LINK_UPDATE with the old program leaves no gap", prepare: byLink, atomic: true,
			kernel: func(p *place, _ *xdp.Hook, i int) error {
				return kernel.LinkUpdate(p.link, p.fd(dropping(i)), p.fd(dropping(i-1)))
			},
			xdp: func(p *place, _ *xdp.Hook, i int) error {
				return p.own.Replace(xdp.ReplaceOptions{Program: p.prog(dropping(i)), Expect: xdp.Expect(p.prog(dropping(i - 1)))})
			},
		}, {
			name: "netlink replace leaves no gap", prepare: byNetlink, atomic: true,
			kernel: func(p *place, _ *xdp.Hook, i int) error { return p.set(p.fd(dropping(i)), flags) },
			xdp:    func(p *place, h *xdp.Hook, i int) error { return h.Attach(p.prog(dropping(i)), xdp.Any) },
		}, {
			name: "netlink replace with the expected program leaves no gap", prepare: byNetlink, atomic: true,
			kernel: func(p *place, _ *xdp.Hook, i int) error {
				return p.replace(p.fd(dropping(i)), p.fd(dropping(i-1)), flags)
			},
			xdp: func(p *place, h *xdp.Hook, i int) error {
				return h.Attach(p.prog(dropping(i)), xdp.Expect(p.prog(dropping(i-1))))
			},
		}, {
			name: "netlink detach and attach leave one", prepare: byNetlink,
			kernel: func(p *place, _ *xdp.Hook, i int) error {
				if err := p.set(none, flags); err != nil {
					return err
				}
				p.between()
				return p.set(p.fd(dropping(i)), flags)
			},
			xdp: func(p *place, h *xdp.Hook, i int) error {
				if err := h.Detach(xdp.Any); err != nil {
					return err
				}
				p.between()
				return h.Attach(p.prog(dropping(i)), xdp.Empty)
			},
		}, {
			name: "closing a link and making one leave one", prepare: byLink,
			kernel: func(p *place, _ *xdp.Hook, i int) error {
				p.dropLink()
				p.emptied()
				p.between()
				return p.create(dropping(i), flags)
			},
			xdp: func(p *place, h *xdp.Hook, i int) (err error) {
				p.letGo()
				p.emptied()
				p.between()
				p.own, err = h.AttachLink(p.prog(dropping(i)))
				return err
			},
		}, {
			// A link can't take over what netlink attached, so the program
			// goes before the link comes. Back again is the same gap.
			name: "handing over from netlink to a link leaves one", prepare: byNetlink,
			kernel: func(p *place, _ *xdp.Hook, i int) error {
				if i%2 == 0 {
					p.dropLink()
					p.emptied()
					p.between()
					return p.set(p.fd(dropping(i)), flags)
				}
				if err := p.create(dropping(i), flags); !errors.Is(err, unix.EBUSY) {
					p.Errorf("kernel: a link over what netlink attached is answered with %v, want EBUSY", err)
				}
				if err := p.set(none, flags); err != nil {
					return err
				}
				p.between()
				return p.create(dropping(i), flags)
			},
			xdp: func(p *place, h *xdp.Hook, i int) (err error) {
				if i%2 == 0 {
					p.letGo()
					p.emptied()
					p.between()
					return h.Attach(p.prog(dropping(i)), xdp.Empty)
				}
				if err := h.Detach(xdp.Any); err != nil {
					return err
				}
				p.between()
				p.own, err = h.AttachLink(p.prog(dropping(i)))
				return err
			},
		}} {
			rows = append(rows, row{
				name:   way.name + " in " + mode.name + " mode",
				kernel: under(flags, way.prepare, way.kernel, way.atomic), want: ok(empty),
				xdp: under(flags, way.prepare, way.xdp, way.atomic), gives: done(empty),
			})
		}
	}
	return rows
}
