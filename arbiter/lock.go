package arbiter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Lock makes a hook one that nothing may be attached to, by anybody: a link holds
// it, with a program that passes every packet. The hook must be empty. The errors
// are those of Apply.
func (a *Arbiter) Lock(ctx context.Context, h *xdp.Hook) (Acknowledge, error) {
	return a.edit(ctx, h, "lock", owned.Chain.Lock)
}

// Unlock undoes Lock. The errors are those of Apply, [owned.ErrInvalid] where the
// hook is not locked.
func (a *Arbiter) Unlock(ctx context.Context, h *xdp.Hook) (Acknowledge, error) {
	return a.edit(ctx, h, "unlock", func(c owned.Chain) (owned.Chain, error) {
		if !c.Locked {
			return c, &owned.Error{Op: "unlock", Err: owned.ErrInvalid, Detail: "the hook is not locked", Hint: "there is nothing to do"}
		}
		return c.Unlock(), nil
	})
}

func (a *Arbiter) edit(ctx context.Context, h *xdp.Hook, name string, edit func(owned.Chain) (owned.Chain, error)) (Acknowledge, error) {
	applied, err := a.Apply(ctx, Transaction{Hook: h, edit: edit, editName: name})
	if err != nil {
		return nil, err
	}
	if applied.Acknowledge == nil {
		return func() error { return nil }, nil
	}
	return applied.Acknowledge, nil
}

// AdoptRequest asks to take over what somebody else attached by netlink.
type AdoptRequest struct {
	Hook *xdp.Hook
	// Name is what the member is to be called, empty for the program's name.
	Name string
	// Object is where the program comes from, and Load says how it is loaded. A
	// program of that name must be attached.
	Object *object.Object
	Load   object.LoadOptions
}

// Adopted is what was taken over.
type Adopted struct {
	*Applied
	// ProgramID is the id of the program that was attached before.
	ProgramID uint32
	// Gap is for how long nothing was attached: a link can't take the place of
	// what netlink attached.
	Gap time.Duration
}

// Adopt makes a shared hook, to which somebody attached a program by netlink, an
// owned one with that program, loaded anew, as its only member. The kernel can't
// do that in one step: for the time of two calls packets meet no program. If the
// second fails the program is attached again as it was.
//
// The errors are those of Apply; it is a conflict where no such program is
// attached, or something else is.
func (a *Arbiter) Adopt(ctx context.Context, r AdoptRequest) (*Adopted, error) {
	info, err := r.Object.Program(r.Load.Program)
	if err != nil {
		return nil, err
	}
	from := &adoption{name: info.Name}
	applied, err := a.Apply(ctx, Transaction{
		Hook: r.Hook, adopt: from,
		Changes: []Change{{Change: owned.Change{Op: owned.Add, Name: r.Name}, Object: r.Object, Load: r.Load}},
	})
	if err != nil {
		return nil, err
	}
	return &Adopted{Applied: applied, ProgramID: from.programID, Gap: from.gap}, nil
}

// adoption is a program that is taken over.
type adoption struct {
	name      string
	programID uint32
	gap       time.Duration
}

const opAdopt = "adopt"

// check finds the program at the hook, and refuses what can't be taken over.
func (f *adoption) check(h *xdp.Hook, now hookState) error {
	e := &xdp.Error{Op: opAdopt, Hook: h.String(), Err: xdp.ErrConflict, Rival: now.at}
	switch {
	case now.at == nil, inOtherMode(now.at, h):
		return nothingAttached(opAdopt, h, now.at)
	case now.entry != nil && now.entry.chain != nil:
		e.Detail, e.Hint = "the hook is owned already", "look at what is there"
		return held(e, now.entry)
	case now.entry != nil:
		e.Detail, e.Hint = "Holdfast attached it", "detach it, and attach it without --shared"
		return held(e, now.entry)
	case now.at.Held != xdp.HeldByNetlink:
		xdp.FindHolders(now.at)
		e.Detail, e.Hint = "a link holds it, and only its holders can give it up", "ask them to detach it"
		return e
	case f.programID != 0 && f.programID != now.at.Program.ID:
		e.Detail, e.Hint = "it was replaced meanwhile", "look at what is attached now and decide again"
		return e
	case !now.at.Program.Called(f.name):
		e.Detail = fmt.Sprintf("the program of the object is called %q", f.name)
		e.Hint = "give the object that the program comes from, or detach it first"
		return e
	}
	f.programID = now.at.Program.ID
	return nil
}

// takeOver exchanges the attachment by netlink for a link.
func (f *adoption) takeOver(h *xdp.Hook, program *ebpf.Program) (*xdp.Link, error) {
	old, err := ebpf.NewProgramFromID(ebpf.ProgramID(f.programID))
	if err != nil {
		return nil, fmt.Errorf("open the program to adopt: %w", err)
	}
	defer old.Close()
	begin := time.Now()
	if err := h.Detach(xdp.Expect(old)); err != nil {
		return nil, err
	}
	link, err := h.AttachLink(program)
	f.gap = time.Since(begin)
	if err != nil {
		return nil, errors.Join(err, h.Attach(old, xdp.Empty))
	}
	return link, nil
}
