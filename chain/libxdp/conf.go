package libxdp

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfast-bpf/holdfast/chain"
)

// conf is a dispatcher's read-only data: how many of its slots are in use, and
// for each what its member wants. What the versions lack is zero.
type conf struct {
	version     int
	frags       bool // from version 2 on
	deviceBound bool // from version 3 on
	slots       []slot
}

type slot struct {
	proceedOn   chain.Actions
	priority    uint32
	frags       bool // from version 2 on
	deviceBound bool // from version 2 on
}

// What the protocol fixes.
const (
	confMagic = 236
	// stubAction is what a slot without a member returns, and what every
	// slot goes on after.
	stubAction = 31
	// A member's flags are those it would be loaded with.
	flagFrags       = 1 << 5
	flagDeviceBound = 1 << 6

	sizeV1, sizeV2, sizeV3 = 84, 124, 128
)

// layout is where a version's fields are. Numbers are little-endian.
type layout struct {
	size, count, frags, actions, priorities, flags, deviceBound int
}

// none stands for a field that the version lacks.
const none = -1

var layouts = map[int]layout{
	1: {size: sizeV1, count: 0, frags: none, actions: 4, priorities: 44, flags: none, deviceBound: none},
	2: {size: sizeV2, count: 2, frags: 3, actions: 4, priorities: 44, flags: 84, deviceBound: none},
	3: {size: sizeV3, count: 2, frags: 3, actions: 4, priorities: 44, flags: 84, deviceBound: 124},
}

// versionOf tells the version from the data alone, or is false where only the
// dispatcher's BTF can tell, as before version 2.
func versionOf(b []byte) (int, bool) {
	if len(b) >= 2 && b[0] == confMagic {
		return int(b[1]), true
	}
	return 0, false
}

// decodeConf reads the data of a dispatcher of that version. The error is in
// words.
func decodeConf(b []byte, version int) (conf, error) {
	l, ok := layouts[version]
	if !ok {
		return conf{}, fmt.Errorf("version %d of the dispatcher is not known, only 1, 2 and 3 are", version)
	}
	if len(b) < l.size || version == 3 && len(b) != l.size {
		return conf{}, fmt.Errorf("the dispatcher's configuration has %d bytes, and version %d has %d", len(b), version, l.size)
	}
	n := int(b[l.count])
	if n > MaxMembers {
		return conf{}, fmt.Errorf("the dispatcher's configuration tells of %d members, and there are no more than %d slots", n, MaxMembers)
	}
	u32 := func(offset, i int) uint32 { return binary.LittleEndian.Uint32(b[offset+4*i:]) }
	set := func(offset int) bool { return offset != none && b[offset] != 0 }
	c := conf{version: version, frags: set(l.frags), deviceBound: set(l.deviceBound)}
	for i := range n {
		s := slot{
			proceedOn: chain.Actions(u32(l.actions, i)).Without(stubAction),
			priority:  u32(l.priorities, i),
		}
		if l.flags != none {
			s.frags = u32(l.flags, i)&flagFrags != 0
			s.deviceBound = u32(l.flags, i)&flagDeviceBound != 0
		}
		c.slots = append(c.slots, s)
	}
	return c, nil
}

// encode writes the configuration. The version must be known, and there must be
// no more slots than MaxMembers.
func (c conf) encode() []byte {
	l := layouts[c.version]
	b := make([]byte, l.size)
	if c.version >= 2 {
		b[0], b[1] = confMagic, byte(c.version)
	}
	put := func(offset, i int, v uint32) { binary.LittleEndian.PutUint32(b[offset+4*i:], v) }
	set := func(offset int, v bool) {
		if offset != none && v {
			b[offset] = 1
		}
	}
	b[l.count] = byte(len(c.slots))
	set(l.frags, c.frags)
	set(l.deviceBound, c.deviceBound)
	for i, s := range c.slots {
		put(l.actions, i, uint32(s.proceedOn.With(stubAction)))
		put(l.priorities, i, s.priority)
		if l.flags == none {
			continue
		}
		var flags uint32
		if s.frags {
			flags |= flagFrags
		}
		if s.deviceBound {
			flags |= flagDeviceBound
		}
		put(l.flags, i, flags)
	}
	return b
}
