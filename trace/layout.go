package trace

import (
	"encoding/binary"
	"errors"
	"time"
)

// What bpf/trace.c has room for.
const (
	maxSteps = 64
	maxTests = 32
	headers  = 256
	maxSnap  = 2048
)

// The fields that tests are about, as bpf/trace.c numbers them.
type field uint8

const (
	etherType field = iota
	vlan
	protocol
	sourcePort
	destinationPort
	numbers
	source4      = numbers
	destination4 = numbers + 1
	source6      = numbers + 2
	destination6 = numbers + 3
)

const (
	flagNot  = 1
	flagLast = 2
)

// test is struct test of bpf/trace.c.
type test struct {
	Field           field
	Flags           uint8
	Lowest, Highest uint16
	Unused          uint16
	Address, Mask   [16]byte
}

// programOptions are the options of bpf/trace.c.
type programOptions struct {
	Tests, Limit, Snap, Ifindex, Netns uint32
	Test                               [maxTests]test
}

// counters are those of bpf/trace.c.
type counters struct{ Told, Lost uint64 }

// What comes before the steps, and one of these.
const (
	packetHead = 24
	stepSize   = 8
	packetSize = packetHead + maxSteps*stepSize // what comes before the data
)

var errRecord = errors.New("the kernel's record of a packet makes no sense")

// parseRecord reads struct packet of bpf/trace.c, of a chain with that many
// members. Times there are since boot.
func parseRecord(b []byte, boot time.Time, members int) (*Packet, error) {
	if len(b) < packetSize {
		return nil, errRecord
	}
	word := func(offset int) uint32 { return binary.NativeEndian.Uint32(b[offset:]) }
	kept, steps := word(12), word(20)
	if uint64(kept) > uint64(len(b)-packetSize) {
		return nil, errRecord
	}
	p := &Packet{
		Time:   boot.Add(time.Duration(binary.NativeEndian.Uint64(b))),
		Length: int(word(8)), Verdict: Verdict(word(16)),
		Data: append([]byte(nil), b[packetSize:packetSize+int(kept)]...),
		Met:  []Step{},
	}
	for i := range int(min(steps, maxSteps)) {
		offset := packetHead + i*stepSize
		if uint64(word(offset)) >= uint64(members) {
			return nil, errRecord
		}
		p.Met = append(p.Met, Step{Member: int(word(offset)), Returned: Verdict(word(offset + 4))})
	}
	return p, nil
}
