// Package stats is what a chain counts of its members where that was asked for:
// how often each returned which verdict, and how long some of its runs took.
//
// The counters are in a map of one element for each processor, which both engines
// of owned chains write in the same layout, each member at a place of its own. It
// is not the program's: a chain that is built anew takes it over, and each member
// goes on counting where it was. Two readings of the clock cost more than most
// members do, so that of [Sample] packets one is timed.
//
// What the kernel itself counts ([xdp.ReadRun]) is of whole chains only: it
// does not count what an extension does, nor can it see the members of one
// program.
//
// [xdp.ReadRun]: https://pkg.go.dev/github.com/holdfast-bpf/holdfast/xdp#ReadRun
package stats

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
)

const (
	// Places is how many members have a place of their own, twice as many as a
	// chain can have: who comes gets one that nobody has just left.
	Places = 64
	// Sample is of how many packets on a processor one is timed. It is a power of
	// two.
	Sample = 64
)

// Where things are in the map, for those who write programs that count: a counter
// is eight bytes, and a member has [Size] from [Begin] on, first of its verdicts by
// number, and at [Other] those that are no actions.
const (
	Packets = 0
	Begin   = 64
	Size    = 64
	Other   = int(chain.Redirect) + 1
	Timed   = 8 * (int16(Other) + 1)
	Time    = Timed + 8
)

// Verdicts are how often a member returned what.
type Verdicts struct {
	Aborted  uint64 `json:"aborted"`
	Drop     uint64 `json:"drop"`
	Pass     uint64 `json:"pass"`
	TX       uint64 `json:"tx"`
	Redirect uint64 `json:"redirect"`
	// Other are numbers that are no actions, which the kernel takes for
	// XDP_ABORTED.
	Other uint64 `json:"other"`
}

// Sum is how often the member ran.
func (v Verdicts) Sum() uint64 {
	return v.Aborted + v.Drop + v.Pass + v.TX + v.Redirect + v.Other
}

// Counters are what has been counted of one member. They are sums over all
// processors, and read while packets come: one that is under way may be in some
// of them.
type Counters struct {
	Verdicts Verdicts `json:"verdicts"`
	// Timed is how many of its runs were timed, and Time how long those took
	// together, one reading of the clock each included.
	Timed uint64        `json:"timed"`
	Time  time.Duration `json:"time_ns"`
}

// PerRun is how long a run took on average, 0 where none was timed.
func (c Counters) PerRun() time.Duration {
	if c.Timed == 0 {
		return 0
	}
	return c.Time / time.Duration(c.Timed)
}

// Less tells whether any of the numbers is less than it was: it has begun anew since.
func (c Counters) Less(before Counters) bool {
	v, was := c.Verdicts, before.Verdicts
	return v.Aborted < was.Aborted || v.Drop < was.Drop || v.Pass < was.Pass || v.TX < was.TX || v.Redirect < was.Redirect ||
		v.Other < was.Other || c.Timed < before.Timed || c.Time < before.Time
}

// Since is what was counted after that.
func (c Counters) Since(before Counters) Counters {
	return Counters{
		Verdicts: Verdicts{
			Aborted: c.Verdicts.Aborted - before.Verdicts.Aborted, Drop: c.Verdicts.Drop - before.Verdicts.Drop,
			Pass: c.Verdicts.Pass - before.Verdicts.Pass, TX: c.Verdicts.TX - before.Verdicts.TX,
			Redirect: c.Verdicts.Redirect - before.Verdicts.Redirect, Other: c.Verdicts.Other - before.Verdicts.Other,
		},
		Timed: c.Timed - before.Timed, Time: c.Time - before.Time,
	}
}

// All is what a map holds.
type All struct {
	// Packets are those that came to the chain.
	Packets uint64
	Members [Places]Counters
}

// element is the map's element of one processor, in its counters.
type element [(Begin + Places*Size) / 8]uint64

const elementSize = 8 * uint32(len(element{}))

// NewMap makes a map with nothing counted yet. The caller closes it; it lives as
// long as a program that counts in it.
func NewMap() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "holdfast_stats", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: elementSize, MaxEntries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("make the map that the chain counts in: %w", err)
	}
	return m, nil
}

// Open opens the map of that id, which a chain that counts has. The caller closes
// it. It needs CAP_SYS_ADMIN. It is an [os.ErrNotExist] if there is none, and an
// error if it is another kind of map.
func Open(id uint32) (*ebpf.Map, error) {
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return nil, fmt.Errorf("open the map that the chain counts in: %w", err)
	}
	if !Is(m) {
		m.Close()
		return nil, fmt.Errorf("map %d is none that a chain counts in", id)
	}
	return m, nil
}

// Is tells whether a chain could count in the map.
func Is(m *ebpf.Map) bool {
	return m.Type() == ebpf.PerCPUArray && m.KeySize() == 4 && m.ValueSize() == elementSize && m.MaxEntries() == 1
}

// Read reads the map.
func Read(m *ebpf.Map) (All, error) {
	var each []element
	if err := m.Lookup(uint32(0), &each); err != nil {
		return All{}, fmt.Errorf("read what the chain has counted: %w", err)
	}
	return sum(each), nil
}

func sum(each []element) All {
	var all All
	for _, e := range each {
		all.Packets += e[Packets/8]
		for i := range all.Members {
			m, from := &all.Members[i], e[(Begin+i*Size)/8:]
			m.Verdicts.Aborted += from[chain.Aborted]
			m.Verdicts.Drop += from[chain.Drop]
			m.Verdicts.Pass += from[chain.Pass]
			m.Verdicts.TX += from[chain.Tx]
			m.Verdicts.Redirect += from[chain.Redirect]
			m.Verdicts.Other += from[Other]
			m.Timed += from[Timed/8]
			m.Time += time.Duration(from[Time/8])
		}
	}
	return all
}
