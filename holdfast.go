// Package holdfast attaches XDP programs to network interfaces so that nobody
// else can take them away: several programs share an interface as members of a
// chain, each has an owner and a lifetime, and the kernel holds all of it.
//
//	m, err := holdfast.Attach(ctx, "eth0", "filter.o", holdfast.Options{Name: "filter"})
//	if err != nil {
//		return err // a conflict says who is in the way, and what to do
//	}
//	defer m.Close()
//
// The member runs as long as m is open, and ends with the process, however that
// ends. With Permanent it stays until somebody takes it out.
//
// Programs that want more than one step use an [Arbiter]: [Open] makes one that
// works on this machine's kernel, and package holdfasttest one in memory, for
// tests without root.
//
// It needs Linux 5.10 and root, or CAP_SYS_ADMIN, CAP_BPF, CAP_NET_ADMIN and what
// it takes to see the mount namespace of process 1.
package holdfast

import (
	"context"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Hook is where programs run: an interface, in a network namespace, in a mode.
type Hook struct {
	Interface string
	// Namespace opens the network namespace: a name under /run/netns, a path or
	// a pid. It is empty for the caller's.
	Namespace string
	// Mode is Auto where it is not given.
	Mode xdp.Mode
}

// Transaction is a set of changes of the chain at one hook: all of them are made,
// in one step for every packet, or none.
type Transaction struct {
	Hook Hook
	// Expect is the generation that the chain must have, nil if any will do.
	Expect  *uint64
	Changes []arbiter.Change
	// Engine is how the chain shall run, see [arbiter.Transaction].
	Engine arbiter.Engine
	// Stats is whether the chain shall count what its members return, nil where
	// that is to stay as it is.
	Stats *bool
	// Foreign takes out what another living process holds, too.
	Foreign bool
	// DryRun changes nothing.
	DryRun bool
}

// Applied is what came of a transaction.
type Applied struct {
	Before, After owned.Chain
	Diff          owned.Diff
	// Members are the held members that were added, in the order of the
	// changes. The caller closes them.
	Members []Member
}

// Member is a member of a chain that lives as long as it is held.
type Member interface {
	// Name is the member's name in its chain.
	Name() string
	// Maps are the member's maps, by their names in its object. They are closed
	// with it.
	Maps() map[string]*ebpf.Map
	// Done is closed when the member has ended without Close: somebody took it
	// out of the chain. Err says why then, and is nil before.
	Done() <-chan struct{}
	Err() error
	// Close takes the member out of its chain. Closing again does nothing.
	Close() error
}

// Arbiter decides who may hold a hook. The errors of an arbiter are those of
// [arbiter.Arbiter.Apply]: errors.Is tells them apart by the sentinels of packages
// xdp, owned and object.
type Arbiter interface {
	// Apply makes a transaction.
	Apply(ctx context.Context, t Transaction) (*Applied, error)
	// Chain reads the chain at a hook. A hook that nothing is attached to has an
	// empty one; what is attached there by somebody else is an xdp.ErrConflict.
	Chain(ctx context.Context, h Hook) (owned.Chain, error)
	// Lock makes a hook one that nothing may be attached to; it must be empty.
	// Unlock undoes it.
	Lock(ctx context.Context, h Hook) error
	Unlock(ctx context.Context, h Hook) error
	// Close closes the arbiter, and no member.
	Close() error
}

// Options say how a program becomes a member.
type Options struct {
	// Name is the member's, that of the program where it is empty.
	Name string
	// Hook is where, besides the interface: its Interface is without effect.
	Hook Hook
	// Load says which of the object's programs is loaded, and how.
	Load object.LoadOptions
	// Priority, Before, After and ProceedOn are as in [owned.Change]. What is
	// not given is what the object asks for.
	Priority      *uint32
	Before, After string
	ProceedOn     *chain.Actions
	// Exclusive asks for the hook to itself.
	Exclusive bool
	// Permanent lets the member outlive the process.
	Permanent bool
	// Arbiter is who decides, one of this machine where it is nil.
	Arbiter Arbiter
}

// Attach makes the XDP program of an object file a member of the chain at the
// interface. What is returned is nil if it is permanent, and otherwise closed by
// the caller.
func Attach(ctx context.Context, iface, path string, o Options) (Member, error) {
	file, err := object.Open(path)
	if err != nil {
		return nil, err
	}
	return AttachObject(ctx, iface, file, o)
}

// AttachObject is Attach for an object that is parsed already, and whose
// variables may be set.
func AttachObject(ctx context.Context, iface string, file *object.Object, o Options) (_ Member, err error) {
	a := o.Arbiter
	own := a == nil
	if own {
		if a, err = Open(arbiter.Options{}); err != nil {
			return nil, err
		}
	}
	h := o.Hook
	h.Interface = iface
	change := arbiter.Change{
		Change: owned.Change{
			Op: owned.Add, Name: o.Name, Priority: o.Priority, Before: o.Before, After: o.After,
			ProceedOn: o.ProceedOn, Lifetime: owned.Held,
		},
		Object: file, Load: o.Load,
	}
	if o.Permanent {
		change.Lifetime = owned.Permanent
	}
	if o.Exclusive {
		change.Exclusive = &o.Exclusive
	}
	applied, err := a.Apply(ctx, Transaction{Hook: h, Changes: []arbiter.Change{change}})
	if err != nil || o.Permanent {
		if own {
			a.Close()
		}
		return nil, err
	}
	m := applied.Members[0]
	if own {
		m = withArbiter{m, a}
	}
	return m, nil
}

// withArbiter closes an arbiter with its only member.
type withArbiter struct {
	Member
	arbiter Arbiter
}

func (m withArbiter) Close() error {
	err := m.Member.Close()
	m.arbiter.Close()
	return err
}
