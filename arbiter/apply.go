package arbiter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Change is one change of an owned hook's chain.
type Change struct {
	owned.Change
	// Object is what an add or a replace loads, as Load says. The chain keeps a
	// copy of the file where it may have to load it again.
	Object *object.Object
	Load   object.LoadOptions
	// Extension is instead of an object a program that was loaded against what
	// [Arbiter.Slot] returned. Such a member is held, and its chain live. The program
	// stays the caller's.
	Extension *ebpf.Program
	// PersistAs is, of an add, a path in a bpffs for a second pin of the hook's
	// link, for whoever else shall hold it; or empty.
	PersistAs string
}

// Transaction is a set of changes of one owned hook's chain: all of them are
// made, in one step for every packet, or none.
type Transaction struct {
	Hook *xdp.Hook
	// Expect is the generation that the chain must have, nil if any will do.
	Expect  *uint64
	Changes []Change
	// Engine is how the chain shall run. Empty means: as it does, a member
	// alone as itself, and several live where the kernel can, and else fused.
	Engine Engine
	// Stats is whether the chain shall count what its members return, nil where
	// that is to stay as it is. What is counted is in [MemberStatus].
	Stats *bool
	// Foreign takes out what another living process holds, too.
	Foreign bool
	// DryRun changes nothing.
	DryRun bool

	// edit, if there is one, is what is done instead of Changes. editName tells
	// it from others, if it may be asked for again.
	edit     func(owned.Chain) (owned.Chain, error)
	editName string
	// of is the link of the chain that edit is for, which leaves any other alone;
	// 0 for whichever is there.
	of uint32
	// adopt takes over the foreign program that netlink attached.
	adopt *adoption
}

// Applied is what came of a transaction.
type Applied struct {
	Before, After owned.Chain
	Diff          owned.Diff
	// Held are the handles of the held members that were added. The caller
	// closes them.
	Held []Handle
	// Leases are there instead where it was done on behalf of another process.
	Leases []*Lease
	// Acknowledge is nil after a dry run, and where nothing had to be changed.
	Acknowledge Acknowledge
}

// tries bounds how often a transaction is planned anew because others changed
// the chain while programs were loaded for it.
const tries = 8

// Apply makes a transaction. The errors are [*owned.Error], those of loading and
// of the engines ([*object.Error], [*fused.LimitError]), those of
// [xdp.Hook.AttachLink] and [xdp.Link.Replace], a [HeldError] where the rival is
// Holdfast's, xdp.ErrGone where what Holdfast attached has ended without it, and
// ErrLockTimeout. On every error the chain runs as before.
func (a *Arbiter) Apply(ctx context.Context, t Transaction) (*Applied, error) {
	owner, err := a.who()
	if err != nil {
		return nil, err
	}
	sources, err := newSources(&t, owner, a.behalf != nil)
	if err != nil {
		return nil, err
	}
	defer sources.close()
	done, err := a.turns.take(ctx, hookKey(t.Hook), a.timeout)
	if err != nil {
		return nil, a.timedOut(err)
	}
	defer done()
	var raced error
	for range tries {
		applied, err := a.try(ctx, &t, sources)
		if !errors.Is(err, errRaced) && !errors.Is(err, live.ErrSlotTaken) {
			return applied, err
		}
		raced = err
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Duration(rand.Int64N(int64(5 * time.Millisecond)))):
		}
	}
	if !errors.Is(raced, errRaced) {
		return nil, raced
	}
	return nil, &xdp.Error{
		Op: opApply, Hook: t.Hook.String(), Err: xdp.ErrConflict,
		Detail: fmt.Sprintf("others changed the chain %d times meanwhile: %s", tries, raced), Hint: "try again",
	}
}

const opApply = "change the chain"

// errRaced says that the chain is not what the change was planned for any more.
var errRaced = errors.New("the chain has changed")

// try plans for the chain as it is, loads what that takes without the lock, and
// carries it out if the chain is still the same.
func (a *Arbiter) try(ctx context.Context, t *Transaction, s *sources) (*Applied, error) {
	p, err := a.planned(ctx, t, s)
	if err != nil || p.repeated || t.DryRun || !p.changes() {
		applied := p.applied()
		if err == nil && p.repeated {
			applied.Acknowledge = a.acknowledgeChain(p.key, s.owner)
		}
		return applied, err
	}
	b, err := a.build(t.Hook, p, s)
	if err != nil {
		return nil, err
	}
	defer b.close()
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	now, err := a.here(l, t.Hook)
	if err != nil {
		return nil, err
	}
	if !p.stillHolds(now) && (t.adopt == nil || t.adopt.check(t.Hook, now) != nil) {
		return nil, fmt.Errorf("%w: %s", errRaced, describeChain(now))
	}
	applied := p.applied()
	if err := a.execute(l, now, t, p, b, s, applied); err != nil {
		return nil, err
	}
	applied.Acknowledge = a.acknowledgeChain(now.key, s.owner)
	return applied, nil
}

// plan is what a transaction makes of the chain that it found.
type plan struct {
	key string
	// found is the chain as it was recorded, nil where the hook is empty.
	found *chainRecord
	// dead are the held members whose holders have ended. They are not in
	// before any more.
	dead          map[uint32]bool
	before, after owned.Chain
	ids           []uint32
	diff          owned.Diff
	engine        Engine
	// repeated tells that a killed process made this very change.
	repeated bool
}

func (p *plan) changes() bool {
	return p.after.Generation != p.before.Generation || len(p.dead) > 0
}

func (p *plan) applied() *Applied {
	if p == nil {
		return nil
	}
	return &Applied{Before: p.before, After: p.after, Diff: p.diff}
}

// current is what runs, as far as Holdfast has recorded it.
func (p *plan) current() arrangement {
	if p.found == nil {
		return arrangement{NextID: firstID}
	}
	return p.found.current
}

// stillHolds tells whether the chain is the one that was planned for.
func (p *plan) stillHolds(now hookState) bool {
	if now.entry == nil || now.entry.chain == nil {
		return p.found == nil && now.at == nil
	}
	return p.found != nil && now.entry.chain.current.Generation == p.found.current.Generation &&
		now.entry.chain.current.ProgramID == p.found.current.ProgramID &&
		now.entry.chain.header.LinkID == p.found.header.LinkID
}

func describeChain(now hookState) string {
	if now.entry == nil || now.entry.chain == nil {
		return "the hook is another's, or empty"
	}
	return fmt.Sprintf("it is at generation %d", now.entry.chain.current.Generation)
}

// planned reads the chain under the lock, and decides without changing it what
// is to come of it.
func (a *Arbiter) planned(ctx context.Context, t *Transaction, s *sources) (*plan, error) {
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	now, err := a.here(l, t.Hook)
	if err != nil {
		return nil, err
	}
	if err := a.permitAll(t, now, s); err != nil {
		return nil, err
	}
	p := &plan{key: now.key, engine: t.Engine, before: owned.Chain{NextID: firstID}}
	attaches := t.edit != nil || slices.ContainsFunc(t.Changes, func(c Change) bool { return c.Op == owned.Add })
	switch {
	case t.adopt != nil && !s.madeAt(now):
		if err := t.adopt.check(t.Hook, now); err != nil {
			return nil, err
		}
	case now.entry != nil && now.entry.chain != nil && inOtherMode(now.at, t.Hook):
		if !attaches {
			return nil, nothingAttached(opApply, t.Hook, now.at)
		}
		return nil, held(conflict(opApply, t.Hook, now.at, fmt.Sprintf("give mode %s, or none", now.at.Mode)), now.entry)
	case now.entry != nil && now.entry.chain != nil:
		p.found = now.entry.chain
		p.dead = a.deadMembers(p.key, p.found)
		p.before = p.found.current.model(p.dead)
	case now.at != nil:
		return nil, inTheWay(t.Hook, now, attaches)
	case s.repeats(now.detachedBy):
		p.repeated = true
		return p, nil
	case !attaches && now.lost != nil:
		return nil, drifted(opApply, t.Hook, now.lost, "attach anew")
	case !attaches && (len(t.Changes) > 0 || t.Stats != nil):
		return nil, nothingAttached(opApply, t.Hook, nil)
	}
	if p.found != nil && s.repeats(p.found.header.Done) {
		a.log("completed what a killed process had begun", "entry", p.key)
		p.repeated, p.after = true, p.before
		p.found.header.Done.By = s.owner.Process
		return p, p.found.putHeader()
	}
	if t.of != 0 && (p.found == nil || p.found.header.LinkID != t.of) {
		p.after, p.dead = p.before, nil
		return p, nil
	}
	if t.edit != nil {
		if p.after, err = t.edit(p.before); err != nil {
			return nil, p.withOwner(err, t.Hook)
		}
		return p, nil
	}
	if err := a.mayRemove(t, p, s); err != nil {
		return nil, err
	}
	changes := make([]owned.Change, len(t.Changes))
	for i, c := range t.Changes {
		changes[i] = c.Change
	}
	result, err := p.before.Apply(owned.Transaction{Expect: t.Expect, Changes: changes, Stats: t.Stats, MaxMembers: MaxMembers})
	if err != nil {
		return nil, p.withOwner(err, t.Hook)
	}
	if err := t.Engine.Check(result.After); err != nil {
		return nil, err
	}
	if p.found != nil && s.persistAs != "" {
		return nil, &xdp.Error{
			Op: opApply, Hook: t.Hook.String(), Err: xdp.ErrInvalid, Detail: "its link is there already, and --persist-as is for who attaches first",
			Hint: "leave that out, or take off what is there first",
		}
	}
	p.after, p.ids, p.diff = result.After, result.IDs, result.Diff
	if len(p.dead) > 0 && p.after.Generation == p.before.Generation {
		p.after.Generation++
	}
	return p, nil
}

// inTheWay is the conflict with what is attached and is no owned chain.
func inTheWay(h *xdp.Hook, now hookState, attaches bool) error {
	hint := "detach it first"
	switch {
	case now.at.Held == xdp.HeldByNetlink && attaches:
		hint = "detach it first, or attach with --shared"
	case now.entry == nil && now.at.Held == xdp.HeldByLink:
		hint = "its owner must detach it"
	}
	e := conflict(opApply, h, now.at, hint)
	if now.entry == nil {
		e.Detail = "what is there was not attached by Holdfast"
	}
	return held(e, now.entry)
}

// mayRemove refuses to take out what another process holds and has not let go,
// and to replace it even with Foreign: what comes in its place could only be
// held here.
func (a *Arbiter) mayRemove(t *Transaction, p *plan, s *sources) error {
	for _, c := range t.Changes {
		if c.Op != owned.Replace && (c.Op != owned.Remove || t.Foreign) {
			continue
		}
		at := p.before.Find(c.Name)
		if at < 0 {
			continue
		}
		if p.before.Members[at].Lifetime != owned.Held {
			if c.Extension != nil {
				return &owned.Error{
					Op: c.Op, Member: c.Name, Err: owned.ErrInvalid,
					Detail: "it is permanent, and a program that was loaded already can only be held", Hint: "load it by its object",
				}
			}
			continue
		}
		r := p.record(p.before.Members[at].ID)
		if r.Owner.Process == s.owner.Process {
			continue
		}
		e := &xdp.Error{
			Op: string(c.Op), Hook: fmt.Sprintf("member %q of %s", c.Name, t.Hook), Err: xdp.ErrConflict,
			Detail: fmt.Sprintf("process %d (%s) holds it", r.Owner.PID, r.Owner.Comm),
			Hint:   "it ends with that process; or take it out with --foreign, and answer for it",
		}
		if c.Op == owned.Replace {
			e.Hint = "only its holder can replace it"
		}
		return e
	}
	return nil
}

// record is what is recorded of a member that was found.
func (p *plan) record(id uint32) memberRecord {
	if p.found == nil {
		return memberRecord{}
	}
	r, _ := p.found.member(id) // which is only said
	return r
}

// withOwner adds whose a member is that is in the way.
func (p *plan) withOwner(err error, h *xdp.Hook) error {
	var e *owned.Error
	if !errors.As(err, &e) {
		return err
	}
	var r memberRecord
	switch {
	case e.Rival != nil:
		r = p.record(e.Rival.ID)
	case errors.Is(err, owned.ErrLocked) && p.found != nil && p.found.header.Locker != nil:
		r = *p.found.header.Locker
	default:
		return err
	}
	return &MemberError{Err: e, Hook: h.String(), Owner: r.Owner, Since: r.Since}
}

// MemberError is a conflict with a member of the chain, or with who locked the
// hook.
type MemberError struct {
	// Err is the conflict. Its Rival is nil where the hook is locked.
	Err  *owned.Error
	Hook string
	// Owner is whose the member is that is in the way, or the lock, and Since when
	// it came.
	Owner Owner
	Since time.Time
}

// Error ends, as the conflict's own does, with what to do.
func (e *MemberError) Error() string {
	conflict := *e.Err
	conflict.Hint = ""
	s := fmt.Sprintf("%s; %s has been locked by %s", &conflict, e.Hook, e.Owner)
	if e.Err.Rival != nil {
		s = fmt.Sprintf("%s; member %q at %s is %s's", &conflict, e.Err.Rival.Name, e.Hook, e.Owner)
	}
	if !e.Since.IsZero() {
		s += ", since " + e.Since.Format(time.RFC3339)
	}
	if e.Err.Hint != "" {
		s += "; " + e.Err.Hint
	}
	return s
}

// Unwrap returns the conflict.
func (e *MemberError) Unwrap() error { return e.Err }
