// Package rates makes rates of two looks at the same hooks: packets a second, shares
// of verdicts, time a packet. It is pure: who looks gives it what was seen.
package rates

import (
	"time"

	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Sample is what was seen at one time.
type Sample struct {
	Time  time.Time
	Hooks []Hook
}

// Hook is a hook with a program.
type Hook struct {
	// Namespace is the network namespace's id, and NamespaceName what it is called,
	// empty for that of whoever looks.
	Namespace, NamespaceName string
	Index                    int
	Interface                string
	Mode                     string
	By                       string // who holds it
	ProgramID                uint32
	Program                  string
	// LoadedAt is when the program was loaded, to the second or so.
	LoadedAt time.Time
	// Run is what the kernel has counted of the program, nil where it could not be
	// read.
	Run *xdp.Run
	// Packets are those that the chain has counted, where it does.
	Packets uint64
	Members []Member
}

// Member is a member of a chain.
type Member struct {
	ID   uint32
	Name string
	By   string
	// Counters are what the chain has counted of it, nil where it does not.
	Counters *stats.Counters
}

// Row is what a hook or one of its members did between two looks.
type Row struct {
	Netns     string `json:"netns,omitempty"`
	Interface string `json:"interface"`
	Mode      string `json:"mode"`
	// Member is the name of the member, and empty in the row of the whole hook, which
	// comes before those of its members.
	Member  string `json:"member,omitempty"`
	Program string `json:"program,omitempty"`
	By      string `json:"by"`
	// Rates are nil where nobody counts, or where there was nothing to compare with.
	Rates *Rates `json:"rates"`
	// Verdicts are of a member whose chain counts; nil of others.
	Verdicts *stats.Verdicts `json:"verdicts,omitempty"`
}

// Rates are what one did with how many packets.
type Rates struct {
	// Packets is how many a second.
	Packets float64 `json:"packets_per_second"`
	// PerPacket is how many nanoseconds one took, 0 where none was timed.
	PerPacket float64 `json:"ns_per_packet"`
	// CPU is the share of one processor's time: 1 is all of it, and more is that of
	// several.
	CPU float64 `json:"cpu"`
}

type hookKey struct {
	namespace string
	index     int
	mode      string
}

func (h Hook) key() hookKey { return hookKey{h.Namespace, h.Index, h.Mode} }

// Between tells what has happened between two samples, for everything that is in the
// second one. What was not in the first began with nothing.
func Between(before, after Sample) []Row {
	seconds := after.Time.Sub(before.Time).Seconds()
	known := map[hookKey]Hook{}
	runs := map[uint32]xdp.Run{}
	for _, h := range before.Hooks {
		known[h.key()] = h
		if h.Run != nil {
			runs[h.ProgramID] = *h.Run
		}
	}
	var rows []Row
	for _, h := range after.Hooks {
		was, had := known[h.key()]
		row := Row{Netns: h.NamespaceName, Interface: h.Interface, Mode: h.Mode, By: h.By, Program: h.Program}
		if seconds > 0 && h.Run != nil {
			row.Rates = runRates(h, runs, before.Time, seconds)
		}
		rows = append(rows, row)
		members := map[uint32]Member{}
		for _, m := range was.Members {
			members[m.ID] = m
		}
		for _, m := range h.Members {
			row := Row{Netns: h.NamespaceName, Interface: h.Interface, Mode: h.Mode, Member: m.Name, By: m.By}
			// A hook that is new may have counted long before somebody looked.
			if seconds > 0 && m.Counters != nil && had {
				row.count(members[m.ID].Counters, *m.Counters, seconds)
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// runRates are those of the whole hook, as the kernel counts, which is of a program,
// wherever it runs. One that was loaded meanwhile began with nothing, and how often the
// one before it ran until then was seen by nobody. One that is older and was not seen
// before has counted elsewhere, or in another's time: its rates come with the next look.
func runRates(after Hook, before map[uint32]xdp.Run, since time.Time, seconds float64) *Rates {
	const coarse = 2 * time.Second // as the time of loading is
	run := *after.Run
	was, had := before[after.ProgramID]
	if !had && after.LoadedAt.Before(since.Add(-coarse)) {
		return nil
	}
	run.Count -= was.Count
	run.Time -= was.Time
	r := &Rates{Packets: float64(run.Count) / seconds, CPU: run.Time.Seconds() / seconds}
	if run.Count > 0 {
		r.PerPacket = float64(run.Time.Nanoseconds()) / float64(run.Count)
	}
	return r
}

// count makes the row that of a member which the chain has counted so.
func (r *Row) count(before *stats.Counters, now stats.Counters, seconds float64) {
	// Fewer than before are of a chain that has begun anew meanwhile.
	if before != nil && !now.Less(*before) {
		now = now.Since(*before)
	}
	packets := float64(now.Verdicts.Sum()) / seconds
	r.Verdicts = &now.Verdicts
	r.Rates = &Rates{Packets: packets}
	if now.Timed > 0 {
		r.Rates.PerPacket = float64(now.Time.Nanoseconds()) / float64(now.Timed)
		r.Rates.CPU = packets * r.Rates.PerPacket / float64(time.Second)
	}
}
