package arbiter

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// MaxMembers is how many members a chain can have. A fused one may come to
// another limit before.
const MaxMembers = live.Places

// build is what a plan needs of the kernel: loaded, and not attached to anything
// that runs. It is made without the lock.
type build struct {
	next arrangement
	// root is what the hook's link is to run. It is nil where that stays, and
	// where nothing is to be attached any more.
	root *ebpf.Program
	// The rest is the live engine's.
	dispatcher *live.Dispatcher
	// slots are those that have to be filled before enabled is the word.
	slots   []slotted
	enabled live.Slots
	// counts is the map that the chain counts in, nil where it does not.
	counts  *ebpf.Map
	closers []interface{ Close() error }
}

// slotted is a member that gets a slot.
type slotted struct {
	member  int // in next.Members
	program *ebpf.Program
}

func (b *build) close() {
	for _, c := range b.closers {
		c.Close()
	}
}

func (b *build) closeLater(c interface{ Close() error }) { b.closers = append(b.closers, c) }

// build makes what the plan needs.
func (a *Arbiter) build(h *xdp.Hook, p *plan, s *sources) (*build, error) {
	members, err := a.membersOf(h, p, s)
	if err != nil {
		return nil, err
	}
	engine := p.chooseEngine(p.leased(a.behalf != nil, s))
	if p.current().Engine == Live && engine != Live && engine != "" {
		return nil, &owned.Error{
			Op: opApply, Err: owned.ErrInvalid, Detail: fmt.Sprintf("the chain runs live, and a live one can't become %s", engine),
			Hint: "take all members out, and attach them anew",
		}
	}
	switch engine {
	case "":
		return &build{next: arrange(p.after, nil)}, nil
	case Single:
		return a.buildSingle(p, members)
	case Live:
		return a.buildLive(p, s, members)
	case Fused:
		return a.buildFused(p, s, members)
	default: // any: several, and nobody said how
		b, err := a.buildLive(p, s, members)
		if !errors.Is(err, xdp.ErrNotSupported) && !errors.Is(err, object.ErrExtension) {
			return b, err
		}
		if p.mayBeSingle() {
			return a.buildSingle(p, members)
		}
		a.log("members are fused into one program, because the kernel can't replace functions", "why", err)
		return a.buildFused(p, s, members)
	}
}

const anyEngine Engine = "any"

// chooseEngine decides how the chain is to run, anyEngine where that is to be
// tried, and nothing where nothing is left to run. A member that is leased is live
// where that can be, because then the kernel ends it with its holder.
func (p *plan) chooseEngine(leased bool) Engine {
	current := p.current()
	switch {
	case len(p.after.Members) == 0 && !p.after.Locked:
		return ""
	case len(p.after.Members) == 0:
		return Single
	case p.engine != "":
		return p.engine
	case p.after.Exclusive && current.Engine != Live && p.mayBeSingle():
		return Single
	case current.Engine == Live, current.Engine == Fused:
		// A chain that has come down to one member may grow again, and to
		// change its engine would be another chance to fail.
		return current.Engine
	case p.mayBeSingle() && (!leased || current.Engine == Single):
		return Single
	}
	return anyEngine
}

// leased tells whether the plan comes to members that are held by leases. fresh
// tells that new ones would be.
func (p *plan) leased(fresh bool, s *sources) bool {
	return slices.ContainsFunc(p.after.Members, func(m owned.Member) bool {
		if s.isFresh(p, m.ID) {
			return fresh && m.Lifetime == owned.Held
		}
		is := p.found.current.find(m.ID)
		return is != nil && is.Token != 0
	})
}

// mayBeSingle tells whether the chain is a member that can run as itself.
func (p *plan) mayBeSingle() bool {
	return len(p.after.Members) == 1 && finalAlone(p.after.Members[0]) && !p.after.Stats
}

// finalAlone tells whether the member does by itself what it does as the only one
// of a chain: a chain that goes on after its last member passes the packet.
func finalAlone(m owned.Member) bool { return m.ProceedOn.Without(chain.Pass) == 0 }

// buildSingle makes a hook's only member, or what locks a hook, its program.
func (a *Arbiter) buildSingle(p *plan, members []*source) (*build, error) {
	b := &build{next: arrange(p.after, members)}
	b.next.Engine = Single
	if len(members) == 0 {
		pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "holdfast_lock", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
		})
		if err != nil {
			return nil, fmt.Errorf("load the program that locks the interface: %w", err)
		}
		b.closeLater(pass)
		return b, b.setRoot(pass)
	}
	current := p.current()
	if old := current.find(b.next.Members[0].ID); old != nil && current.Engine == Single {
		b.next.ProgramID, b.next.Members[0].ProgramID = current.ProgramID, old.ProgramID
		return b, nil
	}
	program, err := members[0].asItself()
	if err != nil {
		return nil, err
	}
	if err := b.setRoot(program); err != nil {
		return nil, err
	}
	b.next.Members[0].ProgramID = b.next.ProgramID
	return b, nil
}

func (b *build) setRoot(p *ebpf.Program) error {
	id, err := programID(p)
	b.root, b.next.ProgramID = p, id
	return err
}

// buildFused makes the members one program.
func (a *Arbiter) buildFused(p *plan, s *sources, members []*source) (_ *build, err error) {
	b := &build{next: arrange(p.after, members)}
	b.next.Engine = Fused
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if err := b.count(p, s); err != nil {
		return nil, err
	}
	if current := p.current(); current.Engine == Fused && sameProgram(current, b.next) {
		b.next.ProgramID = current.ProgramID
		return b, nil
	}
	var parts []fused.Member
	for i, m := range members {
		part, err := m.asPart(b.next.Members[i])
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	load := fused.Load
	if b.counts != nil {
		load = func(m []fused.Member) (*ebpf.Program, error) { return fused.LoadCounting(m, b.counts) }
	}
	program, err := load(parts)
	if err != nil {
		return nil, err
	}
	b.closeLater(program)
	return b, b.setRoot(program)
}

// sameProgram tells whether two arrangements are one and the same fused program:
// a priority that moves nothing is a number in the record.
func sameProgram(a, b arrangement) bool {
	if len(a.Members) != len(b.Members) || a.Stats != b.Stats {
		return false
	}
	for i, m := range a.Members {
		if n := b.Members[i]; m.ID != n.ID || m.ProceedOn != n.ProceedOn || m.Counter != n.Counter {
			return false
		}
	}
	return true
}

// buildLive finds each member a slot, in the dispatcher that runs or, where that
// has none or can't run them all, in a new one.
func (a *Arbiter) buildLive(p *plan, s *sources, members []*source) (_ *build, err error) {
	b := &build{next: arrange(p.after, members)}
	b.next.Engine = Live
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if err := b.count(p, s); err != nil {
		return nil, err
	}
	current := p.current()
	wanted := live.Options{Frags: true, Stats: b.counts}
	for i, m := range members {
		wanted.Frags = wanted.Frags && m.frags
		if i > 0 && m.options.Ifindex != wanted.Ifindex {
			return nil, &owned.Error{
				Op: owned.Add, Member: m.name, Err: owned.ErrInvalid,
				Detail: "a chain's members are bound to its device all, or none is",
				Hint:   "give --device-bound for all of them",
			}
		}
		wanted.Ifindex = m.options.Ifindex
	}
	layout := live.Arrangement{New: true}
	if current.Engine == Live {
		running, err := live.Open(current.ProgramID)
		if err != nil {
			return nil, err
		}
		b.closeLater(running)
		b.next.Left = current.stillLeft()
		if running.Frags() == wanted.Frags && running.DeviceBound() == (wanted.Ifindex != 0) && running.StatsID() == b.next.Stats {
			if layout, err = live.Layout(seats(current, b.next), taken(running, current)|s.refused|left(b.next.Left)); err != nil {
				return nil, err
			}
		}
		if !layout.New {
			b.dispatcher, b.next.ProgramID = running, current.ProgramID
		}
	}
	if layout.New {
		b.next.Left = nil
		if layout.Slots, err = live.Fresh(len(members)); err != nil {
			return nil, err
		}
		d, err := loadDispatcher(members[0].hook, wanted)
		if err != nil {
			return nil, err
		}
		b.closeLater(d)
		b.dispatcher = d
		if err := b.setRoot(d.Program()); err != nil {
			return nil, err
		}
	}
	if !layout.New {
		b.next.leave(current, layout.Slots)
	}
	for i := range b.next.Members {
		m := &b.next.Members[i]
		m.Slot = layout.Slots[i]
		b.enabled = b.enabled.With(m.Slot)
		old := current.find(m.ID)
		if old != nil && current.Engine == Live {
			m.ProgramID = old.ProgramID
			if b.root == nil && old.Slot == m.Slot {
				m.LinkID = old.LinkID
				continue // it stays where it is
			}
		}
		program, err := members[i].asExtension(b.dispatcher, m.Slot, m.ProgramID)
		if err != nil {
			return nil, err
		}
		if m.ProgramID, err = programID(program); err != nil {
			return nil, err
		}
		b.slots = append(b.slots, slotted{i, program})
	}
	return b, nil
}

// seats are the members as the engine has to find slots for them: one whose mask
// is to be another needs another slot for it.
func seats(current, next arrangement) []live.Wanted {
	var all []live.Wanted
	for _, m := range next.Members {
		w := live.Wanted{Slot: live.NoSlot}
		if old := current.find(m.ID); old != nil {
			w = live.Wanted{Slot: old.Slot, Anew: old.ProceedOn != m.ProceedOn}
		}
		all = append(all, w)
	}
	return all
}

// stillLeft are the slots that were left and whose links are there still: who held a
// member closes its link later than it was taken out.
func (a *arrangement) stillLeft() []leftSlot {
	var all []leftSlot
	for _, l := range a.Left {
		if linkLives(l.Link) {
			all = append(all, l)
		}
	}
	return all
}

// leave remembers the slots that members leave with a change, where slots are those of
// the members afterwards.
func (a *arrangement) leave(before arrangement, slots []live.Slot) {
	for _, m := range before.Members {
		at := slices.IndexFunc(a.Members, func(n placed) bool { return n.ID == m.ID })
		if at < 0 || slots[at] != m.Slot {
			a.Left = append(a.Left, leftSlot{m.Slot, m.LinkID})
		}
	}
	if more := len(a.Left) - mostLeft; more > 0 {
		a.Left = a.Left[more:]
	}
}

func left(all []leftSlot) live.Slots {
	var slots live.Slots
	for _, l := range all {
		slots = slots.With(l.Slot)
	}
	return slots
}

// taken are the slots that packets may be in, or that a link still has, as far as
// the chain knows.
func taken(d *live.Dispatcher, current arrangement) live.Slots {
	all := d.Enabled()
	for _, m := range current.Members {
		all = all.With(m.Slot)
	}
	return all
}

func loadDispatcher(h *xdp.Hook, o live.Options) (d *live.Dispatcher, err error) {
	load := func() (err error) {
		d, err = live.Load(o)
		return err
	}
	if o.Ifindex == 0 {
		err = load()
		return d, err
	}
	err = h.Namespace().Do(load)
	return d, err
}
