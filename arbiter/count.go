package arbiter

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

// count gives the chain a map to count in, where it is to: the one that it has, so
// that its members go on counting, or a new one. It lives as long as the program
// that counts, and is found by its id.
//
// A new member gets a place that nobody has. What is there was counted of others,
// and is written down, to be taken off. Places are taken one after the other, so
// that one which a packet may still be counted in is not the next.
func (b *build) count(p *plan, s *sources) error {
	if !p.after.Stats {
		return nil
	}
	current := p.current()
	m, err := openStats(current.Stats)
	if err != nil {
		return err
	}
	b.closeLater(m)
	b.counts = m
	if b.next.Stats, err = kernel.MapID(kernel.FD(m.FD())); err != nil {
		return err
	}
	counted, err := stats.Read(m)
	if err != nil {
		return err
	}
	taken := map[int]bool{}
	if b.next.Stats == current.Stats {
		for _, old := range current.Members {
			taken[old.Counter] = true
		}
	}
	fresh := s.fresh(p)
	for i := range b.next.Members {
		to := &b.next.Members[i]
		if old := current.find(to.ID); old != nil && b.next.Stats == current.Stats {
			to.Counter = old.Counter
			continue
		}
		for to.Counter = int(to.ID % stats.Places); taken[to.Counter]; {
			to.Counter = (to.Counter + 1) % stats.Places
		}
		taken[to.Counter] = true
		if src := fresh[to.ID]; src != nil {
			src.record.CountedFrom = &countedFrom{b.next.Stats, counted.Members[to.Counter]}
		}
	}
	return nil
}

// openStats opens the map of that id, or makes one where there is none.
func openStats(id uint32) (*ebpf.Map, error) {
	if id == 0 {
		return stats.NewMap()
	}
	m, err := stats.Open(id)
	if errors.Is(err, os.ErrNotExist) {
		return stats.NewMap()
	}
	return m, err
}

// counted reads the map of that id, nil where there is none, or it can't be read.
func (a *Arbiter) counted(id uint32) *stats.All {
	if id == 0 {
		return nil
	}
	m, err := stats.Open(id)
	if err != nil {
		return nil
	}
	defer m.Close()
	all, err := stats.Read(m)
	if err != nil {
		a.log("what a chain has counted can't be read", "error", err)
		return nil
	}
	return &all
}
