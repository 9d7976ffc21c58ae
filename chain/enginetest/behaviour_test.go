package enginetest

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// behaviours are what chains do in any engine. show fails the test where one is
// made that does not; that none can be made is its error.
var behaviours = []struct {
	name string
	show func(*site) error
}{
	{"members run in order", inOrder},
	{"a chain goes on after the actions of each member", onActions},
	{"a number that is no action", onNumbers},
	{"one member", onlyOne},
	{"eleven members", ofMany(11)},
	{"33 members", ofMany(33)},
	{"packets of several buffers", ofFragments},
	{"members that move the ends of the packet", movingEnds},
	{"tail calls", tailCalls},
	{"functions and global data", functions("static_functions")},
	{"global functions that are handed the packet", functions("functions")},
	{"spin locks", spinLocks},
	{"ring buffers", ringBuffers},
	{"maps in maps", nested},
	{"bpf_loop", simply("looping")},
	{"timers", timers},
	{"CO-RE", simply("relocated")},
	{"functions of the kernel", simply("kernel_functions")},
	{"a value of the kernel's configuration", configured},
	{"values of the kernel's configuration in two members", simply("configured")},
	{"a program without BTF", withoutBTF},
	{"licenses that differ", differentLicenses},
}

func inOrder(s *site) error {
	p, err := s.build(s.verdicts(8)...)
	if err != nil {
		return err
	}
	if result, met := s.scripted(p); result != pass || !slices.Equal(met, []uint32{0, 1, 2, 3, 4, 5, 6, 7}) {
		s.Errorf("the chain returned %d, and the packet met %v", result, met)
	}
	return nil
}

// meaning is what a chain of members that proceed on these actions makes of what
// they return.
func (s *site) meaning(on []chain.Actions, returns []uint32) (result uint32, met []uint32) {
	for i, value := range returns {
		met = append(met, uint32(i))
		proceeds := value <= redirect && on[i].Has(chain.Action(value))
		if value > redirect {
			proceeds = s.engine.goesOn(on[i], value)
		}
		if !proceeds {
			return value, met
		}
	}
	return pass, met
}

// tried has members that proceed on these actions return all combinations of
// these values.
func (s *site) tried(on []chain.Actions, values []uint32) error {
	s.Helper()
	members := s.verdicts(len(on))
	for i := range members {
		members[i].on = on[i]
	}
	p, err := s.build(members...)
	if err != nil {
		return err
	}
	returns := make([]uint32, len(on))
	for n := 0; ; n++ {
		rest := n
		for i := range returns {
			returns[i] = values[rest%len(values)]
			rest /= len(values)
		}
		if rest > 0 {
			return nil
		}
		result, met := s.scripted(p, returns...)
		if want, wantMet := s.meaning(on, returns); result != want || !slices.Equal(met, wantMet) {
			s.Fatalf("members that proceed on %q return %d: the chain returned %d and met %v, want %d and %v",
				on, returns, result, met, want, wantMet)
		}
	}
}

var (
	never  = chain.Actions(0)
	always = chain.Set(chain.AllActions()...)
)

func onActions(s *site) error {
	return s.tried(
		[]chain.Actions{chain.DefaultProceedOn, always, chain.Set(chain.Aborted, chain.Drop), chain.Set(chain.Tx, chain.Redirect)},
		[]uint32{aborted, drop, pass, tx, redirect})
}

func onNumbers(s *site) error {
	// With the lower bits of some it would be an action. The last one is what
	// an empty slot of a live chain returns.
	return s.tried([]chain.Actions{always, chain.DefaultProceedOn, never},
		[]uint32{pass, 5, 31, 32, 34, 256, 1 << 31, 1<<31 | 2, 1<<32 - 1, 0x48464c56})
}

func onlyOne(s *site) error {
	members := s.verdicts(1)
	members[0].on = chain.Set(chain.Drop)
	p, err := s.build(members...)
	if err != nil {
		return err
	}
	for value := range redirect + 1 {
		want := value
		if value == drop && !s.engine.aloneIsFinal {
			want = pass
		}
		if got, met := s.scripted(p, value); got != want || len(met) != 1 {
			s.Errorf("the only member, which proceeds on XDP_DROP, returns %d: the chain returned %d, want %d", value, got, want)
		}
	}
	return nil
}

func ofMany(n int) func(*site) error {
	return func(s *site) error {
		p, err := s.build(s.verdicts(n)...)
		if err != nil {
			return err
		}
		s.write()
		if got := s.run(p); got != pass {
			s.Errorf("the chain returned %d", got)
		}
		var script script
		s.must(s.script.Lookup(uint32(0), &script))
		if script.Met != uint32(n) {
			s.Errorf("the packet met %d members, want %d", script.Met, n)
		}
		return nil
	}
}

// ofFragments sends a packet that takes several buffers over the wire.
func ofFragments(s *site) error {
	const mtu, port, size = 9000, 7777, 8000
	s.must(s.veth.Far.Conn.SetMTU(s.veth.FarIndex, mtu))
	s.must(s.veth.Near.Conn.SetMTU(s.veth.NearIndex, mtu))
	members := []member{
		s.of(s.read("member", nil), "m_frags", nil), s.of(s.read("member", nil), "m_frags_too", nil),
	}
	if _, err := s.build(members...); err != nil {
		return err
	}
	s.veth.Far.In(s, func() error {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.veth.NearAddr, port)))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, size))
		return err
	})
	for i, m := range members {
		const number = 12 // of m_frags in the maps of bpf/member.c
		var n uint64
		kerneltest.Eventually(func() bool {
			b, err := m.maps["met"].LookupBytes(uint32(number + i))
			s.must(err)
			n = binary.NativeEndian.Uint64(b)
			return n > 0
		})
		if n != 1 {
			s.Errorf("%s met %d packets, want 1", m.info.Name, n)
		}
	}
	return nil
}

func movingEnds(s *site) error {
	before, after := s.parts("measured")[0], s.parts("measured")[0]
	moving := s.parts("grown", "cut", "marked")[:3]
	p, err := s.build(slices.Concat([]member{before}, moving, []member{after})...)
	if err != nil {
		return err
	}
	if got := s.run(p); got != pass {
		s.Fatalf("the chain returned %d", got)
	}
	const length, front, back, meta = 60, 8, 4, 12
	for _, c := range []struct {
		m            member
		length, meta uint64
	}{{before, length, 0}, {after, length + front - back, meta}} {
		n := s.value(c.m, ".bss", 8) // size, and behind it size_of_meta
		if n&0xffffffff != c.length || n>>32 != c.meta {
			s.Errorf("a member saw %d bytes and %d of metadata, want %d and %d", n&0xffffffff, n>>32, c.length, c.meta)
		}
	}
	return nil
}

// tailCalls shows that what a tail call leads to answers for the member, and that
// the next one is met after it.
func tailCalls(s *site) error {
	jumping := s.of(s.read("tailcall", nil), "enter", nil)
	jumping.on = chain.Set(chain.Drop)
	last := s.verdicts(1)[0]
	p, err := s.build(jumping, last)
	if err != nil {
		return err
	}
	for port, meets := range map[uint16]bool{7777: true, 1: false} {
		s.write()
		result, err := p.Run(&ebpf.RunOptions{Data: udp4(port)})
		s.must(err)
		var script script
		s.must(s.script.Lookup(uint32(0), &script))
		if result != pass || (script.Met == 1) != meets {
			s.Errorf("port %d: the chain returned %d, and the packet met %d members after the one with the tail call", port, result, script.Met)
		}
	}
	return nil
}

// udp4 is an Ethernet frame with an empty UDP datagram over IPv4.
func udp4(port uint16) []byte {
	b := make([]byte, 60)
	b[12], b[13] = 0x08, 0x00
	b[14] = 0x45
	b[14+9] = unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[14+20+2:], port)
	return b
}

// simply is shown by programs of bpf/parts.c that pass if all is well.
func simply(program string) func(*site) error {
	return func(s *site) error {
		_, err := s.passes(s.parts(program)...)
		return err
	}
}

func functions(program string) func(*site) error {
	return func(s *site) error {
		members := s.parts(program)
		p, err := s.passes(members...)
		if err != nil {
			return err
		}
		s.run(p)
		for i, m := range members {
			// What begins with 5, and what begins with 0, two packets later.
			if five, zero := s.value(m, ".data", 0), s.value(m, ".bss", 0); five != 7 || zero != 2 {
				s.Errorf("the globals of member %d are %d and %d, want 7 and 2", i, five, zero)
			}
		}
		return nil
	}
}

func spinLocks(s *site) error {
	members := s.parts("locked")
	if _, err := s.passes(members...); err != nil {
		return err
	}
	for i, m := range members {
		if a, b := s.value(m, "guarded_values", 8), s.value(m, "guarded_values", 16); a != 1 || b != 1 {
			s.Errorf("member %d counted %d and %d under its lock, want 1", i, a, b)
		}
	}
	return nil
}

func ringBuffers(s *site) error {
	members := s.parts("reported")
	if _, err := s.passes(members...); err != nil {
		return err
	}
	for i, m := range members {
		r, err := ringbuf.NewReader(m.maps["sizes"])
		s.must(err)
		r.SetDeadline(time.Now())
		record, err := r.Read()
		r.Close()
		if err != nil {
			s.Errorf("member %d reported nothing: %v", i, err)
		} else if size := binary.NativeEndian.Uint32(record.RawSample); size != 60 {
			s.Errorf("member %d reported a packet of %d bytes, want 60", i, size)
		}
	}
	return nil
}

func nested(s *site) error {
	members := s.parts("nested")
	if _, err := s.passes(members...); err != nil {
		return err
	}
	for i, m := range members {
		if n := s.value(m, "inner", 0); n != 1 {
			s.Errorf("member %d counted %d packets, want 1", i, n)
		}
	}
	return nil
}

func timers(s *site) error {
	members := s.parts("timed")
	p, err := s.build(members...)
	if err != nil {
		return err
	}
	switch result := s.run(p); result {
	case pass:
	case tx:
		// bpf_timer_init has no memory, which is so for all programs: Linux 7.3
		// makes no timers on a processor without cmpxchg16b.
		alone, err := members[0].object.Load(members[0].options())
		s.must(err)
		defer alone.Close()
		if s.run(alone.Program) != tx {
			s.Error("in the chain there is no memory for timers, and there is for the program alone")
		}
		return nil
	default:
		s.Fatalf("the chain returned %d", result)
	}
	const rang = 16 // offset of the counter
	for i, m := range members {
		if !kerneltest.Eventually(func() bool { return s.value(m, "alarms", rang) == 1 }) {
			s.Errorf("the timer of member %d rang %d times, want once", i, s.value(m, "alarms", rang))
		}
	}
	return nil
}

func configured(s *site) error {
	_, err := s.passes(s.parts("configured")[0], s.of(s.read("pass", nil), "", nil))
	return err
}

func withoutBTF(s *site) error {
	stripped := func(elf []byte) []byte { return bytes.ReplaceAll(elf, []byte(".BTF"), []byte(".old")) }
	_, err := s.passes(s.of(s.read("pass", stripped), "", nil), s.of(s.read("count", nil), "", nil))
	return err
}

func differentLicenses(s *site) error {
	const open, closed = "Dual BSD/GPL", "Proprietary\x00"
	other := func(elf []byte) []byte { return bytes.ReplaceAll(elf, []byte(open), []byte(closed)) }
	_, err := s.passes(s.of(s.read("pass", other), "", nil), s.of(s.read("count", nil), "", nil))
	return err
}
