package arbiter

import (
	"context"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Service is what an arbiter does for owned hooks, wherever it runs: an [Arbiter]
// in this process, or the daemon behind package client. The errors are those that
// the methods of Arbiter tell.
type Service interface {
	Apply(ctx context.Context, t Transaction) (*Applied, error)
	Adopt(ctx context.Context, r AdoptRequest) (*Adopted, error)
	Lock(ctx context.Context, h *xdp.Hook) (Acknowledge, error)
	Unlock(ctx context.Context, h *xdp.Hook) (Acknowledge, error)
	// Slot is for who loads a program itself, see Change.Extension.
	Slot(ctx context.Context, h *xdp.Hook) (object.Extension, error)
	// At returns what is attached at the hook, nil where nothing is, and Chain its
	// chain. Status tells of whole namespaces.
	At(h *xdp.Hook) (*Status, error)
	Chain(h *xdp.Hook) (owned.Chain, error)
	Status(namespaces []*xdp.Namespace) ([]Status, error)
	GC(ctx context.Context, dryRun bool) ([]Stale, error)
	Explain(h *xdp.Hook, conflict *xdp.Error) error
	// Close closes the service, and no handle.
	Close() error
}

var _ Service = (*Arbiter)(nil)
