package holdfast

import (
	"context"
	"errors"
	"sync"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Open makes an arbiter that works on this machine's kernel, without a daemon.
// The caller closes it. Errors are those of [arbiter.Open].
func Open(o arbiter.Options) (Arbiter, error) {
	a, err := arbiter.Open(o)
	if err != nil {
		return nil, err
	}
	return With(a), nil
}

// With makes an arbiter of a service: one of this process, or the daemon's client.
// Closing it closes the service.
func With(s arbiter.Service) Arbiter { return &service{s} }

// service is the arbiter that a service makes.
type service struct{ arbiter arbiter.Service }

func (e *service) Close() error { return e.arbiter.Close() }

// at calls f with the hook.
func at(h Hook, f func(*xdp.Hook) error) error {
	ns, err := xdp.OpenNamespace(h.Namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	hook, err := ns.Hook(h.Interface, h.Mode)
	if err != nil {
		return err
	}
	return f(hook)
}

func (e *service) Apply(ctx context.Context, t Transaction) (*Applied, error) {
	var result *Applied
	err := at(t.Hook, func(h *xdp.Hook) error {
		applied, err := e.arbiter.Apply(ctx, arbiter.Transaction{
			Hook: h, Expect: t.Expect, Changes: t.Changes, Engine: t.Engine, Stats: t.Stats, Foreign: t.Foreign, DryRun: t.DryRun,
		})
		if err != nil {
			return err
		}
		result = &Applied{Before: applied.Before, After: applied.After, Diff: applied.Diff}
		for _, m := range applied.Held {
			result.Members = append(result.Members, &member{Handle: m, hook: t.Hook})
		}
		return acknowledge(applied.Acknowledge)
	})
	return result, err
}

func acknowledge(ack arbiter.Acknowledge) error {
	if ack == nil {
		return nil
	}
	return ack()
}

func (e *service) Chain(_ context.Context, h Hook) (owned.Chain, error) {
	var c owned.Chain
	err := at(h, func(hook *xdp.Hook) (err error) {
		c, err = e.arbiter.Chain(hook)
		return err
	})
	return c, err
}

func (e *service) Lock(ctx context.Context, h Hook) error { return e.change(ctx, h, e.arbiter.Lock) }

func (e *service) Unlock(ctx context.Context, h Hook) error {
	return e.change(ctx, h, e.arbiter.Unlock)
}

func (e *service) change(ctx context.Context, h Hook, f func(context.Context, *xdp.Hook) (arbiter.Acknowledge, error)) error {
	return at(h, func(hook *xdp.Hook) error {
		ack, err := f(ctx, hook)
		if err != nil {
			return err
		}
		return acknowledge(ack)
	})
}

// member is a member that this process holds.
type member struct {
	arbiter.Handle
	hook Hook
	once sync.Once
	err  error
}

// Close takes the member out by a transaction, so that no trace of it is left,
// and drops what holds it in any case.
func (m *member) Close() error {
	m.once.Do(func() {
		err := m.remove()
		if errors.Is(err, xdp.ErrNotFound) {
			err = nil // the interface is gone, or has another name
		}
		m.err = errors.Join(err, m.Handle.Close())
	})
	return m.err
}

func (m *member) remove() error {
	if m.Err() != nil {
		return nil // it has ended already
	}
	return at(m.hook, func(h *xdp.Hook) error { return m.Remove(context.Background(), h) })
}
