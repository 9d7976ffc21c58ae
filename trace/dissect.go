package trace

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// fields are what a packet's first bytes tell. It finds what bpf/trace.c does.
type fields struct {
	present   uint32
	values    [numbers]uint16
	addresses [4][16]byte
}

func (f *fields) has(x field) bool { return f.present&(1<<x) != 0 }

func (f *fields) number(x field, v uint16) {
	f.values[x] = v
	f.present |= 1 << x
}

func (f *fields) address(x field, b []byte) {
	copy(f.addresses[x-source4][:], b)
	f.present |= 1 << x
}

// dissect reads an Ethernet packet.
func dissect(b []byte) fields {
	var f fields
	b = b[:min(len(b), headers)]
	if len(b) < 14 {
		return f
	}
	two := binary.BigEndian.Uint16
	kind := two(b[12:])
	b = b[14:]
	for range 2 {
		if kind != 0x8100 && kind != 0x88a8 || len(b) < 4 {
			break
		}
		f.number(vlan, two(b)&0xfff)
		kind, b = two(b[2:]), b[4:]
	}
	f.number(etherType, kind)
	switch kind {
	case 0x0800:
		if len(b) < 20 {
			return f
		}
		f.number(protocol, uint16(b[9]))
		f.address(source4, b[12:16])
		f.address(destination4, b[16:20])
		if two(b[6:])&0x1fff != 0 {
			return f // a later fragment has no ports
		}
		b = after(b, int(b[0]&15)*4)
	case 0x86dd:
		if len(b) < 40 {
			return f
		}
		next := b[6]
		f.address(source6, b[8:24])
		f.address(destination6, b[24:40])
		b = b[40:]
		for range 4 {
			fragment := next == 44
			if next != 0 && next != 43 && next != 60 && !fragment || len(b) < 8 {
				break
			}
			if fragment && two(b[2:])&^7 != 0 {
				f.number(protocol, uint16(b[0]))
				return f
			}
			length := 8
			if !fragment {
				length += int(b[1]) * 8
			}
			next, b = b[0], after(b, length)
		}
		f.number(protocol, uint16(next))
	default:
		return f
	}
	switch f.values[protocol] {
	case 6, 17, 132, 136:
		if len(b) >= 4 {
			f.number(sourcePort, two(b))
			f.number(destinationPort, two(b[2:]))
		}
	}
	return f
}

func after(b []byte, n int) []byte { return b[min(n, len(b)):] }

func (t test) passes(f *fields) bool {
	yes := f.has(t.Field)
	if yes && t.Field < numbers {
		v := f.values[t.Field]
		yes = v >= t.Lowest && v <= t.Highest
	} else if yes {
		for i, b := range f.addresses[t.Field-source4] {
			yes = yes && b&t.Mask[i] == t.Address[i]
		}
	}
	return yes != (t.Flags&flagNot != 0)
}

// Match tells whether the filter means a packet with these first bytes.
func (f *Filter) Match(packet []byte) bool {
	if len(f.tests) == 0 {
		return true
	}
	found := dissect(packet)
	all := true
	for _, t := range f.tests {
		all = all && t.passes(&found)
		if t.Flags&flagLast == 0 {
			continue
		}
		if all {
			return true
		}
		all = true
	}
	return false
}

// Summary says in a few words what the packet is, as "udp 10.0.0.1:5353 >
// 10.0.0.2:53".
func (p *Packet) Summary() string {
	f := dissect(p.Data)
	s := "not Ethernet"
	if f.has(etherType) {
		s = fmt.Sprintf("ether proto %#04x", f.values[etherType])
		for name, n := range etherTypes {
			if n == f.values[etherType] {
				s = name
			}
		}
	}
	if f.has(protocol) {
		s = fmt.Sprintf("proto %d", f.values[protocol])
		for name, n := range protocols {
			if n == f.values[protocol] {
				s = name
			}
		}
	}
	if f.has(vlan) {
		s = fmt.Sprintf("vlan %d %s", f.values[vlan], s)
	}
	from, to, ok := f.ends()
	if !ok {
		return s
	}
	if !f.has(sourcePort) {
		return fmt.Sprintf("%s %s > %s", s, from, to)
	}
	return fmt.Sprintf("%s %s > %s", s, netip.AddrPortFrom(from, f.values[sourcePort]), netip.AddrPortFrom(to, f.values[destinationPort]))
}

// ends are the addresses that the packet goes between.
func (f *fields) ends() (from, to netip.Addr, ok bool) {
	switch {
	case f.has(source4):
		return netip.AddrFrom4([4]byte(f.addresses[0][:4])), netip.AddrFrom4([4]byte(f.addresses[1][:4])), true
	case f.has(source6):
		return netip.AddrFrom16(f.addresses[2]), netip.AddrFrom16(f.addresses[3]), true
	}
	return from, to, false
}
