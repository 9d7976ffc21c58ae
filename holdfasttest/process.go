package holdfasttest

import (
	"context"
	"fmt"
	"github.com/cilium/ebpf"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Process is a process of the machine: a [holdfast.Arbiter] whose held members
// end with it.
type Process struct {
	machine *Machine
	owner   arbiter.Owner
	ended   bool
}

var _ holdfast.Arbiter = (*Process)(nil)

// NewProcess starts a process.
func (m *Machine) NewProcess() *Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.processes++
	p := &Process{machine: m, owner: arbiter.Owner{UID: os.Getuid(), GID: os.Getgid(), Comm: "holdfasttest"}}
	p.owner.PID = m.processes
	return p
}

const opApply = "change the chain"

// firstID is the first version of a chain's first member, as it is on a kernel.
const firstID = 16

// Apply makes a transaction, as [holdfast.Arbiter] says.
func (p *Process) Apply(ctx context.Context, t holdfast.Transaction) (*holdfast.Applied, error) {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	i, err := p.look(ctx, t.Hook)
	if err != nil {
		return nil, err
	}
	r := request{process: p, Transaction: t, attaches: slices.ContainsFunc(t.Changes, func(c arbiter.Change) bool { return c.Op == owned.Add })}
	for _, c := range t.Changes {
		var loads arbiter.Loads
		if c.Op == owned.Add || c.Op == owned.Replace {
			if c, loads, err = c.Complete(describe(t.Hook)); err != nil {
				return nil, err
			}
		}
		r.changes, r.digests = append(r.changes, c.Change), append(r.digests, loads.Digest)
	}
	r.decide = func(before owned.Chain) (owned.Result, error) {
		return before.Apply(owned.Transaction{Expect: t.Expect, Changes: r.changes, Stats: t.Stats, MaxMembers: arbiter.MaxMembers})
	}
	return r.make(i)
}

// Chain reads the chain at a hook, as [holdfast.Arbiter] says.
func (p *Process) Chain(ctx context.Context, h holdfast.Hook) (owned.Chain, error) {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	i, err := p.look(ctx, h)
	if err != nil {
		return owned.Chain{}, err
	}
	at := i.at(h.Mode)
	switch {
	case at.empty(), inOtherMode(at, h):
		return owned.Chain{}, nil
	case at.foreign != nil:
		return owned.Chain{}, &xdp.Error{
			Op: "read the chain", Hook: describe(h), Err: xdp.ErrConflict, Rival: at.attachment(),
			Hint: "it has no chain of Holdfast's",
		}
	}
	return at.running(), nil
}

// Lock locks a hook, as [holdfast.Arbiter] says.
func (p *Process) Lock(ctx context.Context, h holdfast.Hook) error {
	return p.edit(ctx, h, owned.Chain.Lock)
}

// Unlock unlocks a hook, as [holdfast.Arbiter] says.
func (p *Process) Unlock(ctx context.Context, h holdfast.Hook) error {
	return p.edit(ctx, h, func(c owned.Chain) (owned.Chain, error) {
		if !c.Locked {
			return c, &owned.Error{Op: "unlock", Err: owned.ErrInvalid, Detail: "the hook is not locked", Hint: "there is nothing to do"}
		}
		return c.Unlock(), nil
	})
}

func (p *Process) edit(ctx context.Context, h holdfast.Hook, f func(owned.Chain) (owned.Chain, error)) error {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	i, err := p.look(ctx, h)
	if err != nil {
		return err
	}
	r := request{process: p, Transaction: holdfast.Transaction{Hook: h}, attaches: true}
	r.decide = func(before owned.Chain) (owned.Result, error) {
		after, err := f(before)
		return owned.Result{After: after}, err
	}
	_, err = r.make(i)
	return err
}

// Close closes the arbiter, and no member.
func (p *Process) Close() error {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	p.ended = true
	return nil
}

// Kill ends the process. What it held ends with it, and nobody is told: the next
// who changes such a chain forgets it.
func (p *Process) Kill() {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	p.ended = true
	for _, i := range p.machine.interfaces {
		for _, at := range []*hook{&i.main, &i.card} {
			for _, m := range at.members {
				m.dead = m.dead || m.process == p && m.handle != nil
			}
			at.release()
		}
	}
}

// look finds the interface for a process that is still there.
func (p *Process) look(ctx context.Context, h holdfast.Hook) (*iface, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if p.ended {
		return nil, &xdp.Error{Op: "lock state", Err: xdp.ErrInvalid, Detail: "the arbiter is closed, or its process has ended", Hint: "start another one"}
	}
	return p.machine.find(h)
}

// member is what belongs to a version of a member.
type member struct {
	name    string
	process *Process
	since   time.Time
	digest  string
	// handle is there if it is held, and dead tells that its holder has ended.
	handle *handle
	dead   bool
}

// request is a change of a chain.
type request struct {
	holdfast.Transaction
	process *Process
	// attaches tells that the hook may be empty.
	attaches bool
	// changes and their digests are what Changes come to.
	changes []owned.Change
	digests []string
	// decide is the rule of it.
	decide func(before owned.Chain) (owned.Result, error)
}

// make does what a kernel's arbiter does, in its order.
func (r *request) make(i *iface) (*holdfast.Applied, error) {
	at := i.at(r.Hook.Mode)
	if err := r.meet(at); err != nil {
		return nil, err
	}
	before := owned.Chain{NextID: firstID}
	if at.chain != nil {
		before = at.running()
	}
	if err := r.mayRemove(at, before); err != nil {
		return nil, err
	}
	result, err := r.decide(before)
	if err != nil {
		return nil, r.withOwner(err, at)
	}
	if err := r.Engine.Check(result.After); err != nil {
		return nil, err
	}
	after := result.After
	forgets := at.chain != nil && len(before.Members) < len(at.chain.Members)
	if forgets && after.Generation == before.Generation {
		after.Generation++
	}
	applied := &holdfast.Applied{Before: before, After: after, Diff: result.Diff}
	if r.DryRun || after.Generation == before.Generation {
		return applied, nil
	}
	if refuse := r.process.machine.Refuse; refuse != nil {
		if err := refuse(r.Transaction); err != nil {
			return nil, err
		}
	}
	if at.chain == nil {
		mode, err := i.attachMode(r.Hook)
		if err != nil {
			return nil, err
		}
		*at = hook{mode: mode, linkID: r.process.machine.nextID()}
	}
	at.programID = r.process.machine.nextID()
	applied.Members = r.carryOut(i, at, after, result.IDs)
	return applied, nil
}

// meet refuses what is not Holdfast's, or not there.
func (r *request) meet(at *hook) error {
	lost := at.settle()
	switch {
	case at.chain != nil && !inOtherMode(at, r.Hook):
		return nil
	case at.chain != nil && !r.attaches:
		return r.nothingAttached(fmt.Sprintf("there is no program in %s mode, but in %s mode", r.Hook.Mode, at.mode))
	case !at.empty():
		return &xdp.Error{
			Op: opApply, Hook: describe(r.Hook), Err: xdp.ErrConflict, Rival: at.attachment(), Hint: "detach it first",
		}
	case r.attaches || len(r.Changes) == 0 && r.Stats == nil && !lost:
		return nil
	case lost:
		return &xdp.Error{
			Op: opApply, Hook: describe(r.Hook), Err: xdp.ErrGone,
			Detail: "what Holdfast attached here has ended: its link was detached by force", Hint: "attach anew",
		}
	}
	return r.nothingAttached("there is no program")
}

func (r *request) nothingAttached(detail string) error {
	return &xdp.Error{Op: opApply, Hook: describe(r.Hook), Err: xdp.ErrNotAttached, Detail: detail, Hint: "attach one first"}
}

func inOtherMode(at *hook, h holdfast.Hook) bool {
	mode := at.mode
	if at.foreign != nil {
		mode = at.foreign.Mode
	}
	return h.Mode != xdp.Auto && mode != h.Mode
}

// mayRemove refuses to take out what another process holds and has not let go.
func (r *request) mayRemove(at *hook, before owned.Chain) error {
	if r.Foreign {
		return nil
	}
	for _, c := range r.changes {
		place := before.Find(c.Name)
		if c.Op != owned.Remove && c.Op != owned.Replace || place < 0 {
			continue
		}
		m := at.members[before.Members[place].ID]
		if m.handle == nil || m.process == r.process {
			continue
		}
		return &xdp.Error{
			Op: string(c.Op), Hook: fmt.Sprintf("member %q of %s", c.Name, describe(r.Hook)), Err: xdp.ErrConflict,
			Detail: fmt.Sprintf("process %d (%s) holds it", m.process.owner.PID, m.process.owner.Comm),
			Hint:   "it ends with that process; or take it out as foreign, and answer for it",
		}
	}
	return nil
}

// withOwner adds whose a member is that is in the way.
func (r *request) withOwner(err error, at *hook) error {
	e, ok := err.(*owned.Error) //nolint:errorlint // what decide returns, not what others have wrapped
	if !ok || e.Rival == nil {
		return err
	}
	full := &arbiter.MemberError{Err: e, Hook: describe(r.Hook)}
	if m := at.members[e.Rival.ID]; m != nil {
		full.Owner, full.Since = m.process.owner, m.since
	}
	return full
}

// carryOut makes the hook's chain the one that was decided on, and returns the
// handles of what is held of it from now on.
func (r *request) carryOut(i *iface, at *hook, after owned.Chain, ids []uint32) []holdfast.Member {
	old := at.members
	at.chain, at.members = &after, map[uint32]*member{}
	for _, m := range after.Members {
		if was := old[m.ID]; was != nil {
			at.members[m.ID] = was
		}
	}
	var held []holdfast.Member
	for n, c := range r.changes {
		place := slices.IndexFunc(after.Members, func(m owned.Member) bool { return m.ID == ids[n] })
		if c.Op != owned.Add && c.Op != owned.Replace || place < 0 {
			continue
		}
		m := &member{name: c.Name, process: r.process, since: time.Now().Round(time.Second), digest: r.digests[n]}
		at.members[ids[n]] = m
		if after.Members[place].Lifetime == owned.Held {
			m.handle = &handle{member: m, id: ids[n], place: r.Hook, iface: i, hook: at, done: make(chan struct{})}
			held = append(held, m.handle)
		}
	}
	for id, m := range old {
		if at.members[id] == nil && m.handle != nil && !m.dead {
			m.handle.end("somebody took it out of the chain")
		}
	}
	at.release()
	return held
}

// handle is a member that a process holds.
type handle struct {
	*member
	id    uint32
	place holdfast.Hook
	iface *iface
	hook  *hook
	once  sync.Once
	// closed tells that Close has taken the member out, err that somebody else
	// has, and done is closed then.
	closed bool
	err    error
	done   chan struct{}
}

func (h *handle) Name() string { return h.name }

// Maps returns none: nothing is loaded.
func (h *handle) Maps() map[string]*ebpf.Map { return nil }

func (h *handle) Done() <-chan struct{} { return h.done }

func (h *handle) Err() error {
	h.process.machine.mu.Lock()
	defer h.process.machine.mu.Unlock()
	return h.err
}

// end tells the holder that the member has ended, and why.
func (h *handle) end(why string) {
	if h.closed {
		return // it knows
	}
	h.err = &xdp.Error{
		Op: "hold", Hook: fmt.Sprintf("member %q", h.name), Err: xdp.ErrGone,
		Detail: why, Hint: "attach it anew",
	}
	close(h.done)
}

// Close takes the member out of its chain, if it is there still.
func (h *handle) Close() error {
	h.once.Do(func() {
		h.process.machine.mu.Lock()
		defer h.process.machine.mu.Unlock()
		h.takeOut()
	})
	return nil
}

// takeOut removes the member, of a hook that is where it was. Elsewhere the hook
// can't be found any more, and the member only ends.
func (h *handle) takeOut() {
	if h.err != nil {
		return // it has ended already
	}
	found, err := h.process.machine.find(h.place)
	here := err == nil && found == h.iface
	h.closed = true
	switch {
	case here:
		h.hook.settle()
	case h.hook.members[h.id] == h.member:
		h.dead = true
		h.hook.release()
	}
	if !here || h.dead || h.hook.members[h.id] != h.member {
		return
	}
	r, err := h.hook.running().Apply(owned.Transaction{Changes: []owned.Change{{Op: owned.Remove, Name: h.name}}})
	if err != nil {
		return // a member that is there can be removed
	}
	(&request{process: h.process}).carryOut(h.iface, h.hook, r.After, nil)
}
