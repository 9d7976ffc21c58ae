package daemon

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/policy"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// methods are those of the interface.
func (d *Daemon) methods() map[string]varlink.Method {
	return map[string]varlink.Method{
		"Apply": method(func(s *session, ctx context.Context, c *varlink.Call, p wire.Apply) error { return s.apply(ctx, c, p) }),
		"Attach": method(func(s *session, ctx context.Context, c *varlink.Call, p wire.Attach) error {
			return s.apply(ctx, c, one(p.Hook, wire.Change{
				Op: owned.Add, Name: p.Name, Placing: p.Placing, Lifetime: p.Lifetime, Object: p.Object, Extension: p.Extension,
			}))
		}),
		"Replace": method(func(s *session, ctx context.Context, c *varlink.Call, p wire.Replace) error {
			return s.apply(ctx, c, one(p.Hook, wire.Change{Op: owned.Replace, Name: p.Name, Expect: p.Expect, Object: p.Object, Extension: p.Extension}))
		}),
		"Detach": method((*session).detach),
		"Set": method(func(s *session, ctx context.Context, c *varlink.Call, p wire.Set) error {
			return s.apply(ctx, c, one(p.Hook, wire.Change{Op: owned.Set, Name: p.Name, Expect: p.Expect, Placing: p.Placing}))
		}),
		"Adopt": method((*session).adopt),
		"Lock": method(func(s *session, ctx context.Context, c *varlink.Call, p wire.Lock) error {
			return s.edit(ctx, c, p, wire.Locked, (*arbiter.Arbiter).Lock)
		}),
		"Unlock": method(func(s *session, ctx context.Context, c *varlink.Call, p wire.Lock) error {
			return s.edit(ctx, c, p, wire.Unlocked, (*arbiter.Arbiter).Unlock)
		}),
		"Acknowledge": method(func(s *session, _ context.Context, c *varlink.Call, _ wire.Empty) error {
			ack := s.acknowledge
			s.acknowledge = nil
			if ack != nil {
				if err := ack(); err != nil {
					return err
				}
			}
			return c.Reply(nil)
		}),
		"Slot":     method((*session).slot),
		"Claim":    method((*session).claim),
		"Get":      method((*session).get),
		"List":     method((*session).list),
		"Collect":  method((*session).collect),
		"Watch":    method((*session).watch),
		"Features": method((*session).features),
		"May":      method((*session).may),
		"Reload": method(func(s *session, ctx context.Context, c *varlink.Call, _ wire.Empty) error {
			if err := s.decide(policy.Request{Verb: policy.Reload}, ""); err != nil {
				return err
			}
			if err := s.daemon.Reload(); err != nil {
				return err
			}
			return c.Reply(nil)
		}),
	}
}

// method reads the parameters of a call.
func method[P any](f func(*session, context.Context, *varlink.Call, P) error) varlink.Method {
	return func(ctx context.Context, c *varlink.Call) error {
		var p P
		if err := c.Decode(&p); err != nil {
			return err
		}
		return f(c.Peer.(*session), ctx, c, p)
	}
}

func one(h wire.Hook, c wire.Change) wire.Apply {
	return wire.Apply{Hook: h, Changes: []wire.Change{c}}
}

// apply makes a transaction.
func (s *session) apply(ctx context.Context, c *varlink.Call, p wire.Apply) error {
	return s.transact(ctx, c, p.Hook, p.Confirm, func(h *xdp.Hook, w *work) (*arbiter.Transaction, error) {
		t := &arbiter.Transaction{Hook: h, Expect: p.Expect, Engine: p.Engine, Stats: p.Stats, Foreign: p.Foreign, DryRun: p.DryRun}
		var objects []*wire.Object
		for _, change := range p.Changes {
			one := arbiter.Change{Change: owned.Change{
				Op: change.Op, Name: change.Name, Expect: change.Expect, Priority: change.Priority, Before: change.Before, After: change.After,
				ProceedOn: change.ProceedOn, Lifetime: change.Lifetime, Exclusive: change.Exclusive,
			}}
			// Nothing is read for whom nothing would be done. What it would take is
			// asked when that is known.
			if err := s.permit(one.Intent(h)); err != nil {
				return nil, err
			}
			t.Changes = append(t.Changes, one)
			objects = append(objects, change.Object)
		}
		read, err := w.read(ctx, c, objects)
		if err != nil {
			return nil, err
		}
		for n, change := range p.Changes {
			one := &t.Changes[n]
			if change.Object != nil {
				if one.Object, one.Load, err = parseFor(h, change.Object, read[n]); err != nil {
					return nil, err
				}
			}
			if change.Extension != nil {
				if one.Extension, err = w.program(c, *change.Extension); err != nil {
					return nil, err
				}
			}
		}
		return t, nil
	})
}

// transact makes the transaction that plan returns for the hook, and replies; nil is
// none, to which an empty reply is the answer. A call that has leases goes on for as
// long as they do, without the hook.
func (s *session) transact(ctx context.Context, c *varlink.Call, at wire.Hook, confirm bool, plan func(*xdp.Hook, *work) (*arbiter.Transaction, error)) error {
	reply := wire.Applied{}
	applied := &arbiter.Applied{}
	err := s.with(c, at, func(h *xdp.Hook) error {
		w := &work{s: s}
		defer w.close()
		t, err := plan(h, w)
		if err != nil || t == nil {
			return err
		}
		if applied, err = s.change(ctx, c, *t); err != nil {
			return err
		}
		s.tellApplied(h, applied)
		reply.Outcome = outcome(applied)
		return nil
	})
	if err != nil {
		return err
	}
	if len(applied.Leases) > 0 {
		return s.hold(ctx, c, reply, applied)
	}
	if err := c.Reply(reply); err != nil {
		return err
	}
	return s.acknowledged(applied.Acknowledge, confirm)
}

func outcome(a *arbiter.Applied) wire.Outcome {
	return wire.Outcome{Before: &a.Before, After: &a.After, Diff: &a.Diff}
}

// change makes a transaction on the client's behalf. Held members are for who takes
// more than one reply: the events of a lease come on the same call.
func (s *session) change(ctx context.Context, c *varlink.Call, t arbiter.Transaction) (*arbiter.Applied, error) {
	d := s.daemon
	if d.policy.Load().Counts() {
		s.user.changing.Lock()
		defer s.user.changing.Unlock()
		if err := d.settle(ctx, s.owner.UID); err != nil {
			return nil, err
		}
	}
	if !c.More {
		if err := s.leasesNone(t); err != nil {
			return nil, err
		}
	}
	return s.arbiter().Apply(ctx, t)
}

// leasesNone refuses a transaction that would make leases.
func (s *session) leasesNone(t arbiter.Transaction) error {
	var chain owned.Chain
	for _, c := range t.Changes {
		held := c.Op == owned.Add && c.Lifetime == owned.Held
		if c.Op == owned.Replace {
			if chain.Members == nil {
				var err error
				if chain, err = s.daemon.arbiter.Chain(t.Hook); err != nil {
					return nil // which the transaction says better
				}
			}
			at := chain.Find(c.Name)
			held = at >= 0 && chain.Members[at].Lifetime == owned.Held
		}
		if held {
			return varlink.ExpectedMore()
		}
	}
	return nil
}

// acknowledged does, or keeps for later, what is to be done when the client has been
// told.
func (s *session) acknowledged(ack arbiter.Acknowledge, confirm bool) error {
	switch {
	case ack == nil:
		return nil
	case confirm:
		s.acknowledge = ack
		return nil
	}
	return ack()
}

// tellApplied tells what a transaction has changed.
func (s *session) tellApplied(h *xdp.Hook, applied *arbiter.Applied) {
	for _, m := range applied.Diff.Members {
		e := wire.Event{Kind: wire.Changed, Interface: h.Name(), Netns: h.Namespace().ID(), Member: m.Name, Owner: &s.owner}
		member := m.After
		switch {
		case m.Before == nil:
			e.Kind = wire.Attached
		case m.After == nil:
			e.Kind, member = wire.Detached, m.Before
		default:
			for _, what := range m.What {
				if what == owned.Replaced {
					e.Kind = wire.Replaced
				}
			}
		}
		e.ID = member.ID
		s.daemon.tell(e)
	}
	if counts := applied.After.Stats; counts != applied.Before.Stats && len(applied.After.Members) > 0 {
		e := wire.Event{
			Kind: wire.Changed, Interface: h.Name(), Netns: h.Namespace().ID(), Owner: &s.owner,
			Message: "the chain counts what its members return",
		}
		if !counts {
			e.Message = "the chain counts no more"
		}
		s.daemon.tell(e)
	}
	s.daemon.watcher.poke()
}

// detach takes a member out. A version that is gone already is what was asked for.
func (s *session) detach(ctx context.Context, c *varlink.Call, p wire.Detach) error {
	return s.transact(ctx, c, p.Hook, false, func(h *xdp.Hook, _ *work) (*arbiter.Transaction, error) {
		remove := owned.Change{Op: owned.Remove, Name: p.Name}
		if p.ID != 0 {
			chain, err := s.daemon.arbiter.Chain(h)
			if err != nil && !errors.Is(err, xdp.ErrConflict) {
				return nil, err
			}
			at := chain.Find(p.Name)
			if at < 0 || chain.Members[at].ID != p.ID {
				return nil, nil
			}
			remove.Expect = chain.Members[at].Generation
		}
		return &arbiter.Transaction{Hook: h, Changes: []arbiter.Change{{Change: remove}}, Foreign: p.Foreign}, nil
	})
}

func (s *session) adopt(ctx context.Context, c *varlink.Call, p wire.Adopt) error {
	return s.with(c, p.Hook, func(h *xdp.Hook) error {
		if err := s.permit(arbiter.Intent{Verb: arbiter.VerbAdopt, Hook: h, Interface: h.Name(), Member: p.Name, Lifetime: owned.Permanent}); err != nil {
			return err
		}
		w := &work{s: s}
		defer w.close()
		read, err := w.read(ctx, c, []*wire.Object{&p.Object})
		if err != nil {
			return err
		}
		o, load, err := parseFor(h, &p.Object, read[0])
		if err != nil {
			return err
		}
		adopted, err := s.arbiter().Adopt(ctx, arbiter.AdoptRequest{Hook: h, Name: p.Name, Object: o, Load: load})
		if err != nil {
			return err
		}
		s.daemon.tell(wire.Event{Kind: wire.Adopted, Interface: h.Name(), Netns: h.Namespace().ID(), Owner: &s.owner})
		err = c.Reply(wire.AdoptReply{
			Outcome: outcome(adopted.Applied), ProgramID: adopted.ProgramID, Gap: adopted.Gap,
		})
		if err != nil {
			return err
		}
		return s.acknowledged(adopted.Acknowledge, p.Confirm)
	})
}

func (s *session) slot(ctx context.Context, c *varlink.Call, p wire.Slot) error {
	return s.with(c, p.Hook, func(h *xdp.Hook) error {
		slot, err := s.arbiter().Slot(ctx, h)
		if err != nil {
			return err
		}
		defer slot.Target.Close()
		target, err := duplicate(slot.Target.FD(), "dispatcher")
		if err != nil {
			return err
		}
		defer target.Close()
		return c.Reply(wire.SlotReply{Target: 0, Function: slot.Function}, target)
	})
}

func (s *session) edit(ctx context.Context, c *varlink.Call, p wire.Lock, kind wire.EventKind, edit func(*arbiter.Arbiter, context.Context, *xdp.Hook) (arbiter.Acknowledge, error)) error {
	return s.with(c, p.Hook, func(h *xdp.Hook) error {
		ack, err := edit(s.arbiter(), ctx, h)
		if err != nil {
			return err
		}
		s.daemon.tell(wire.Event{Kind: kind, Interface: h.Name(), Netns: h.Namespace().ID(), Owner: &s.owner})
		if err := c.Reply(nil); err != nil {
			return err
		}
		return s.acknowledged(ack, p.Confirm)
	})
}

func (s *session) get(_ context.Context, c *varlink.Call, p wire.Get) error {
	return s.with(c, p.Hook, func(h *xdp.Hook) error {
		st, err := s.daemon.arbiter.At(h)
		if err != nil {
			return err
		}
		return c.Reply(wire.GetReply{Attachment: st})
	})
}

func (s *session) list(_ context.Context, c *varlink.Call, p wire.List) error {
	namespaces, err := s.namespaces(c, p)
	defer func() {
		for _, ns := range namespaces {
			ns.Close()
		}
	}()
	if err != nil {
		return err
	}
	all, err := s.daemon.arbiter.List(namespaces, p.Holders)
	if err != nil {
		return err
	}
	return c.Reply(wire.ListReply{Attachments: all})
}

// namespaces are those that a list is of. All of them are root's to see: what they are
// called, and what is in them, is nobody else's business.
func (s *session) namespaces(c *varlink.Call, p wire.List) ([]*xdp.Namespace, error) {
	if !p.All {
		ns, err := s.namespace(c, p.Netns)
		if err != nil {
			return nil, err
		}
		return []*xdp.Namespace{ns}, nil
	}
	if !s.root() {
		return nil, &xdp.Error{Op: "list", Err: xdp.ErrPermission, Detail: "only root may see all network namespaces", Hint: "ask for one that you can open"}
	}
	var all []*xdp.Namespace
	for ns, err := range xdp.Namespaces() {
		if err != nil {
			continue // as if it could not be found
		}
		all = append(all, ns)
	}
	return all, nil
}

// root tells whether the client is this machine's root.
func (s *session) root() bool { return s.subject.UID == 0 && !s.subject.Contained }

func (s *session) collect(ctx context.Context, c *varlink.Call, p wire.Collect) error {
	if !p.DryRun && !s.root() {
		return &xdp.Error{Op: "collect", Err: xdp.ErrPermission, Detail: "only root may", Hint: "the daemon does it by itself"}
	}
	stale, err := s.daemon.arbiter.GC(ctx, p.DryRun)
	if err != nil {
		return err
	}
	return c.Reply(wire.CollectReply{Stale: stale})
}

// watch tells events for as long as the client listens: all to root, and to others
// those in their own network namespace.
func (s *session) watch(ctx context.Context, c *varlink.Call, p wire.Watch) error {
	if !c.More {
		return varlink.ExpectedMore()
	}
	var since time.Time
	if p.Since != nil {
		since = *p.Since
	}
	own := s.ownNamespace()
	send := func(e wire.Event) error {
		if p.Interface != "" && e.Interface != p.Interface || !s.root() && e.Netns != own {
			return nil
		}
		return c.Continue(wire.WatchReply{Event: e})
	}
	past, l, stop := s.daemon.events.listen(since)
	defer stop()
	for _, e := range past {
		if err := send(e); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.missed:
			return &xdp.Error{Op: "watch", Err: xdp.ErrUnexpected, Detail: "events came faster than they were read", Hint: "watch again, from the last one on"}
		case e := <-l.events:
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

func (s *session) features(ctx context.Context, c *varlink.Call, _ wire.Empty) error {
	found, err := features.Kernel(ctx)
	if err != nil {
		return err
	}
	return c.Reply(wire.FeaturesReply{Features: found})
}

// decide asks the policy.
func (s *session) decide(r policy.Request, where string) error {
	d := s.daemon.policy.Load().Decide(s.subject, r)
	if !d.Allowed {
		s.daemon.metrics.Denied(d.Rule)
	}
	return d.Err(r.Verb, where)
}

// may says what the policy would.
func (s *session) may(_ context.Context, c *varlink.Call, p wire.May) error {
	i := arbiter.Intent{
		Verb: p.Verb, Member: p.Member, Lifetime: p.Lifetime, Priority: p.Priority, Exclusive: p.Exclusive,
	}
	if p.Verb == arbiter.VerbAttach || p.Verb == arbiter.VerbAdopt {
		// What an attach has that does not say otherwise, nor its object.
		i.Lifetime = cmp.Or(i.Lifetime, owned.Permanent)
		if i.Priority == nil {
			i.Priority = new(chain.DefaultPriority)
		}
	}
	ask := func(h *xdp.Hook) error {
		if h != nil {
			i.Hook, i.Interface = h, h.Name()
		}
		d := s.daemon.policy.Load().Decide(s.subject, s.request(i))
		return c.Reply(wire.MayReply{Allowed: d.Allowed, Rule: d.Rule, Reason: d.Reason})
	}
	if p.Hook == nil {
		return ask(nil)
	}
	return s.with(c, *p.Hook, ask)
}
