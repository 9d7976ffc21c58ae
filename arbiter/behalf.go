package arbiter

import (
	"slices"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Behalf is for whom an arbiter acts, where that is not its own process.
type Behalf struct {
	// Owner is who asks: whatever is made is recorded as its, and what it holds
	// it holds by a [Lease].
	Owner Owner
	// Permit is asked before each thing that a change would do, and refuses by an
	// error; nil permits all. It is called without the lock and with it, and must
	// not call the arbiter.
	Permit func(Intent) error
}

// OnBehalf returns an arbiter of the same state that acts for another process. It
// needs no Close.
func (a *Arbiter) OnBehalf(b Behalf) *Arbiter {
	other := *a
	other.behalf = &b
	return &other
}

// Verb is what is asked for.
type Verb string

// The verbs.
const (
	VerbAttach  Verb = "attach"
	VerbReplace Verb = "replace"
	VerbDetach  Verb = "detach"
	VerbSet     Verb = "set"
	VerbLock    Verb = "lock"
	VerbUnlock  Verb = "unlock"
	VerbAdopt   Verb = "adopt"
	VerbClaim   Verb = "claim"
)

// Intent is one thing that a change would do.
type Intent struct {
	Verb Verb
	// Hook is where; nil of a claim, which finds its hook by the descriptor:
	// Entry is its directory in the state then.
	Hook      *xdp.Hook
	Interface string
	Entry     string
	// Member is the name of the member that it is about, with what it would be.
	Member   string
	Lifetime Lifetime
	// Priority is nil where it is left as it is. Beside tells that it follows from
	// another member's, before or after which the member is to run.
	Priority  *uint32
	Beside    bool
	Exclusive bool
	// Owner is whose the member is, or the lock, that the change is about; nil of
	// a new one.
	Owner *Owner
	// Digest is of the file that would be loaded, see [object.Object.FileDigest],
	// and Cost what it takes; both are zero where nothing is loaded.
	Digest string
	Cost   Cost
	// Earlier is what the changes before it in the same transaction would bring, which
	// is nowhere yet.
	Earlier Brought
}

// Brought is what changes bring: so many new members, and so many bytes of maps.
type Brought struct {
	Members   int
	MapMemory uint64
}

// Cost is what a member takes, as it can be told before it is loaded.
type Cost struct {
	// ObjectSize is the ELF file's, in bytes, Instructions are the program's with
	// all functions that it calls, and MapMemory is what its maps' elements take
	// when all of them are there, in bytes.
	ObjectSize   int    `json:"object_size,omitempty"`
	Instructions int    `json:"instructions,omitempty"`
	MapMemory    uint64 `json:"map_memory,omitempty"`
}

func costOf(o *object.Object, program string) (Cost, error) {
	instructions, memory, err := o.Cost(program)
	return Cost{ObjectSize: len(o.ELF()), Instructions: instructions, MapMemory: memory}, err
}

// who is for whom the arbiter acts.
func (a *Arbiter) who() (Owner, error) {
	if a.behalf != nil {
		return a.behalf.Owner, nil
	}
	return self()
}

// permit asks whether that may be done.
func (a *Arbiter) permit(i Intent) error {
	if a.behalf == nil || a.behalf.Permit == nil {
		return nil
	}
	return a.behalf.Permit(i)
}

// permitAll asks whether all may be done that a transaction would do at the hook.
func (a *Arbiter) permitAll(t *Transaction, now hookState, s *sources) error {
	if a.behalf == nil || a.behalf.Permit == nil {
		return nil
	}
	var r *chainRecord
	if now.entry != nil {
		r = now.entry.chain
	}
	if t.editName != "" {
		i := Intent{Verb: Verb(t.editName), Hook: t.Hook, Interface: t.Hook.Name(), Lifetime: owned.Permanent}
		if r != nil && r.header.Locker != nil {
			i.Owner = &r.header.Locker.Owner
		}
		return a.permit(i)
	}
	var brought Brought
	for n, c := range t.Changes {
		i := c.Intent(t.Hook)
		i.Earlier = brought
		if t.adopt != nil {
			i.Verb = VerbAdopt
		}
		if src := s.changes[n]; src != nil {
			i.Digest, i.Cost = src.record.Digest, src.record.Cost
			if src.object != nil {
				i.Digest = src.object.FileDigest()
			}
		}
		if err := i.about(r); err != nil {
			return err
		}
		if err := a.permit(i); err != nil {
			return err
		}
		if c.Op == owned.Add {
			brought.Members++
		}
		// What goes beyond all numbers was refused, or has no bound.
		brought.MapMemory += i.Cost.MapMemory
	}
	if t.Stats == nil {
		return nil
	}
	return a.permitStats(t, r)
}

// permitStats asks whether all members may be set that are in the chain: each costs
// packets more where the chain counts.
func (a *Arbiter) permitStats(t *Transaction, r *chainRecord) error {
	if r == nil {
		return nil // there are only those that it brings
	}
	for _, m := range r.current.Members {
		i := Intent{Verb: VerbSet, Hook: t.Hook, Interface: t.Hook.Name(), Member: m.Name}
		if err := i.about(r); err != nil {
			return err
		}
		if err := a.permit(i); err != nil {
			return err
		}
	}
	return nil
}

// Intent is what a change says by itself, before anybody has looked at what it would
// load, or at the chain.
func (c Change) Intent(h *xdp.Hook) Intent {
	i := Intent{
		Verb: verbOf(c.Op), Hook: h, Interface: h.Name(), Member: c.Name, Lifetime: c.Lifetime,
		Priority: c.Priority, Beside: c.Before != "" || c.After != "",
	}
	if c.Op == owned.Add && i.Lifetime == "" {
		i.Lifetime = owned.Permanent
	}
	if c.Exclusive != nil {
		i.Exclusive = *c.Exclusive
	}
	return i
}

// about completes the intent by what the member is that it is about.
func (i *Intent) about(r *chainRecord) error {
	if r == nil || i.Verb == VerbAttach || i.Verb == VerbAdopt {
		return nil
	}
	at := slices.IndexFunc(r.current.Members, func(m placed) bool { return m.Name == i.Member })
	if at < 0 {
		return nil // which is refused for that
	}
	m := r.current.Members[at]
	record, err := r.member(m.ID)
	if err != nil {
		return err
	}
	i.Owner, i.Lifetime = &record.Owner, m.Lifetime
	return nil
}

func verbOf(op owned.Op) Verb {
	switch op {
	case owned.Add:
		return VerbAttach
	case owned.Remove:
		return VerbDetach
	case owned.Replace:
		return VerbReplace
	default:
		return VerbSet
	}
}
