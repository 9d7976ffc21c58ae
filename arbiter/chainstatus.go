package arbiter

import (
	"time"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// ChainStatus is the chain of an owned hook as it runs.
type ChainStatus struct {
	Engine     Engine `json:"engine"`
	Generation uint64 `json:"generation"`
	// Exclusive tells that the only member wants the hook to itself, and Locked
	// that nothing may be attached there.
	Exclusive bool `json:"exclusive,omitempty"`
	Locked    bool `json:"locked,omitempty"`
	// Stats tells that the chain counts what its members return, and Packets how
	// many have come to it since it does.
	Stats   bool   `json:"stats,omitempty"`
	Packets uint64 `json:"packets,omitempty"`
	// Members are in the order that they run in.
	Members []MemberStatus `json:"members"`
}

// MemberStatus is a member of an owned hook's chain.
type MemberStatus struct {
	Name string `json:"name"`
	// ID names this version of the member, see [owned.Member].
	ID         uint32         `json:"id"`
	Priority   uint32         `json:"priority"`
	ProceedOn  chain.Actions  `json:"proceed_on"`
	Generation uint64         `json:"generation"`
	Lifetime   owned.Lifetime `json:"lifetime"`
	// Ended tells that the holder has: the next change of the chain forgets the
	// member. Where the chain is live it does not run any more.
	Ended bool `json:"ended,omitempty"`
	// Program is the member's own; its id is 0 where it is fused with others.
	Program xdp.Program `json:"program"`
	// Slot is where in the dispatcher the member is, and LinkID its link there,
	// of a live chain.
	Slot   *int   `json:"slot,omitempty"`
	LinkID uint32 `json:"link_id,omitempty"`
	// Object is the file that it was loaded from, by the name that it had,
	// Function its program there, and Variables what was set in it. Digest is as
	// in [object.Loaded].
	Object    string    `json:"object"`
	Function  string    `json:"function"`
	Variables []string  `json:"variables,omitempty"`
	Digest    string    `json:"digest"`
	Owner     Owner     `json:"owner"`
	Since     time.Time `json:"since"`
	// Counters are what has been counted of this version of the member, since it
	// came or the chain counts, whichever was later; nil where it does not. What
	// changes in the chain beside it, or moves it, does not change them.
	Counters *stats.Counters `json:"counters,omitempty"`
}

// Model is the chain as the rules of owned chains know it, for planning.
func (s *ChainStatus) Model() owned.Chain {
	c := owned.Chain{Generation: s.Generation, Exclusive: s.Exclusive, Locked: s.Locked, NextID: firstID}
	for _, m := range s.Members {
		c.NextID = max(c.NextID, m.ID+1)
		if m.Ended {
			continue
		}
		c.Members = append(c.Members, owned.Member{
			Name: m.Name, Priority: m.Priority, ProceedOn: m.ProceedOn, Lifetime: m.Lifetime,
			Generation: m.Generation, ID: m.ID,
		})
	}
	c.Stats = s.Stats && len(c.Members) > 0
	return c
}

// Chain reads the chain of an owned hook, as it runs; one that nothing is
// attached to has an empty one. It changes nothing. What is attached there and
// is no owned chain is a conflict.
func (a *Arbiter) Chain(h *xdp.Hook) (owned.Chain, error) {
	st, err := a.At(h)
	if err != nil || st == nil {
		return owned.Chain{}, err
	}
	if st.Chain == nil {
		return owned.Chain{}, a.Explain(h, conflict("read the chain", h, &st.Attachment, "it has no chain of Holdfast's"))
	}
	return st.Chain.Model(), nil
}

// chainStatus reads the chain of an entry, nil of one that has none.
func (a *Arbiter) chainStatus(e *entry) *ChainStatus {
	if e.chain == nil {
		return nil
	}
	r := e.chain
	runs := r.current
	s := &ChainStatus{
		Engine: runs.Engine, Generation: runs.Generation, Exclusive: runs.Exclusive, Locked: runs.Locked, Stats: runs.Stats != 0,
		Members: []MemberStatus{},
	}
	counted := a.counted(runs.Stats)
	if counted != nil {
		s.Packets = counted.Packets
	}
	dead := a.deadMembers(e.key, r)
	for _, p := range runs.Members {
		m, _ := r.member(p.ID) // what can't be read is left out
		status := MemberStatus{
			Name: p.Name, ID: p.ID, Priority: p.Priority, ProceedOn: chain.Actions(p.ProceedOn), Generation: p.Generation, Lifetime: p.Lifetime,
			Ended: dead[p.ID], LinkID: p.LinkID, Object: m.Object, Function: m.Program, Variables: m.Variables, Digest: m.Digest,
			Owner: m.Owner, Since: m.Since,
		}
		if p.ProgramID != 0 {
			status.Program = xdp.LookUpProgram(p.ProgramID)
		}
		if runs.Engine == Live {
			slot := int(p.Slot)
			status.Slot = &slot
		}
		if counted != nil {
			c := counted.Members[p.Counter%stats.Places]
			if from := m.CountedFrom; from != nil && from.Map == runs.Stats {
				c = c.Since(from.Counters)
			}
			status.Counters = &c
		}
		s.Members = append(s.Members, status)
	}
	return s
}
