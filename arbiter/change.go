package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const (
	opAttach  = "attach"
	opReplace = "replace"
	opDetach  = "detach"
)

// AttachRequest asks for an attachment to a shared hook.
type AttachRequest struct {
	Hook *xdp.Hook
	// Program stays the caller's, who can close it afterwards.
	Program *object.Loaded
	// Name is what the owner calls the attachment.
	Name string
	// Expect is what must be attached: what somebody else attached by netlink
	// can be taken over, and what Holdfast attached can be replaced only. The
	// zero value is xdp.Empty.
	Expect xdp.Expectation
}

// Attach attaches a program to a shared hook, by netlink, where cooperation is
// all there is. The errors are those of [xdp.Hook.Attach], a [HeldError] where
// the rival is Holdfast's, and ErrLockTimeout.
func (a *Arbiter) Attach(ctx context.Context, r AttachRequest) (Acknowledge, error) {
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	c, err := a.newChange(opAttach, r.Program)
	if err != nil {
		return nil, err
	}
	s, err := a.here(l, r.Hook)
	if err != nil {
		return nil, err
	}
	switch {
	case s.entry.repeats(c) && s.entry.madeBy(r) && !inOtherMode(s.at, r.Hook):
		return a.repeat(l, s.entry, c)
	case s.entry != nil, s.at != nil && (r.Expect.IsZero() || s.at.Held == xdp.HeldByLink):
		return nil, held(conflict(opAttach, r.Hook, s.at, "detach it first, or replace it"), s.entry)
	}
	e := &entry{key: hookKey(r.Hook), record: Record{
		Name: r.Name, Interface: r.Hook.Name(), Owner: c.owner, Since: time.Now().Round(time.Second),
		Held: xdp.HeldByNetlink, ProgramID: c.id, Digest: c.digest, Pending: c.pending(),
	}}
	if err := a.create(l, e, r, c); err != nil {
		return nil, held(err, s.entry)
	}
	return a.acknowledge(e.key, c), nil
}

// create makes the directory and attaches; where that fails it leaves nothing.
func (a *Arbiter) create(l locked, e *entry, r AttachRequest, c change) (err error) {
	if err := os.Mkdir(a.root.Path(e.key), 0o700); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		left, readErr := a.readEntry(e.key)
		if readErr == nil {
			readErr = a.removeEntry(l, left)
		}
		err = errors.Join(err, readErr)
	}()
	if err := a.pinArrays(l, e.key, r.Program, c.id); err != nil {
		return err
	}
	if err := createRecord(a.root.Path(e.key, recordPin), e.record); err != nil {
		return err
	}
	expect := r.Expect
	if expect.IsZero() {
		expect = xdp.Empty
	}
	return r.Hook.Attach(r.Program.Program, expect)
}

// ReplaceRequest asks for another program in place of the one attached.
type ReplaceRequest struct {
	Hook    *xdp.Hook
	Program *object.Loaded
	// Expect is what must be attached until then.
	Expect xdp.Expectation
}

// Replace replaces the program that Holdfast attached to a shared hook: every
// packet meets the old one or the new one. The errors are those of
// [xdp.Hook.Attach], xdp.ErrNotAttached, xdp.ErrInvalid where the hook is owned, xdp.ErrGone where what Holdfast
// attached has ended without it, a conflict where somebody else made the
// attachment, and ErrLockTimeout.
func (a *Arbiter) Replace(ctx context.Context, r ReplaceRequest) (Acknowledge, error) {
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	c, err := a.newChange(opReplace, r.Program)
	if err != nil {
		return nil, err
	}
	s, err := a.here(l, r.Hook)
	switch {
	case err != nil:
		return nil, err
	case s.at == nil && s.lost != nil:
		return nil, drifted(opReplace, r.Hook, s.lost, "attach anew")
	case s.at == nil, inOtherMode(s.at, r.Hook):
		return nil, nothingAttached(opReplace, r.Hook, s.at)
	case s.entry == nil:
		return nil, foreign(opReplace, r.Hook, s.at, "its owner must replace it; or detach it with --foreign, and attach")
	case s.entry.chain != nil:
		return nil, ownedHook(opReplace, r.Hook)
	case s.entry.repeats(c):
		return a.repeat(l, s.entry, c)
	case !r.Expect.IsZero() && !r.Expect.Holds(s.at.Program.ID):
		return nil, held(unexpected(opReplace, r.Hook, s.at, r.Expect), s.entry)
	}
	return a.replace(l, s.entry, r.Hook, c, r.Expect)
}

func (a *Arbiter) replace(l locked, e *entry, h *xdp.Hook, c change, expect xdp.Expectation) (Acknowledge, error) {
	if e.recordErr != nil {
		return nil, e.recordErr
	}
	if err := a.pinArrays(l, e.key, c.program, c.id); err != nil {
		return nil, err
	}
	// Written before, because a program that netlink attached can be told to
	// be ours by its id alone.
	e.record.Pending = c.pending()
	if err := a.writeRecord(l, e); err != nil {
		return nil, err
	}
	swapErr := h.Attach(c.program.Program, expect)
	keep := c.id
	if swapErr != nil {
		keep, e.record.Pending = e.record.ProgramID, nil
	} else {
		e.record.ProgramID, e.record.Digest = c.id, c.digest
	}
	fresh, err := a.readEntry(e.key)
	if err == nil {
		err = a.removeArrays(l, fresh, keep)
	}
	err = errors.Join(err, a.writeRecord(l, e))
	if swapErr != nil {
		return nil, held(atHook(swapErr, h), e)
	}
	return a.acknowledge(e.key, c), err
}

// atHook words what a link answered as an error of its hook: the pin's path and
// this process, which has just opened it, are of no interest.
func atHook(err error, h *xdp.Hook) error {
	var e *xdp.Error
	if !errors.As(err, &e) {
		return err
	}
	e.Hook = h.String()
	if e.Rival == nil {
		return err
	}
	if s, queryErr := h.Query(); queryErr == nil && s.At(h.Mode()) != nil {
		e.Rival = s.At(h.Mode())
		xdp.FindHolders(e.Rival)
	}
	return err
}

// DetachRequest asks to take off what is not in an owned hook's chain.
type DetachRequest struct {
	Hook *xdp.Hook
	// Expect is what must be attached. The zero value is what Holdfast
	// attached there last.
	Expect xdp.Expectation
	// Foreign takes off what somebody else attached, too; it needs an
	// expectation. A link is detached by force: its holders are not told.
	Foreign bool
}

// Detach takes a program off. The errors are those of [xdp.Hook.Detach],
// xdp.ErrGone where what Holdfast attached has ended without it, a conflict
// where somebody else made the attachment and Foreign was not asked for, and
// ErrLockTimeout.
//
// For a link the expectation is checked here and not by the kernel, which has
// none for detaching: who else has a descriptor of the link, as PersistAs gives
// it away, can replace the program in between.
func (a *Arbiter) Detach(ctx context.Context, r DetachRequest) (Acknowledge, error) {
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	s, err := a.here(l, r.Hook)
	done := func() error { return nil }
	switch {
	case err != nil:
		return nil, err
	case s.at == nil && s.detached:
		return done, nil
	case s.at == nil && s.lost != nil:
		return nil, drifted(opDetach, r.Hook, s.lost, "there is nothing left to detach")
	case s.at == nil, inOtherMode(s.at, r.Hook):
		return nil, nothingAttached(opDetach, r.Hook, s.at)
	case !r.Expect.IsZero() && !r.Expect.Holds(s.at.Program.ID):
		return nil, held(unexpected(opDetach, r.Hook, s.at, r.Expect), s.entry)
	case s.entry == nil && !r.Foreign:
		return nil, foreign(opDetach, r.Hook, s.at, "its owner must detach it; or give --foreign with --expect, and answer for it")
	case s.entry == nil && r.Expect.IsZero():
		e := foreign(opDetach, r.Hook, s.at, "say which program is expected")
		e.Err = xdp.ErrInvalid
		return nil, e
	case s.entry == nil:
		return done, detachForeign(r, s.at)
	case s.entry.chain != nil:
		return nil, ownedHook(opDetach, r.Hook)
	case s.entry.link != nil: // owned, and the record of its chain is missing
		return done, a.removeEntry(l, s.entry)
	}
	return a.detach(l, s.entry, r.Hook, s.at)
}

func (a *Arbiter) detach(l locked, e *entry, h *xdp.Hook, at *xdp.Attachment) (Acknowledge, error) {
	owner, err := a.who()
	if err != nil {
		return nil, err
	}
	c := change{op: opDetach, owner: owner}
	if e.recordErr == nil {
		e.record.Pending = c.pending()
		if err := a.writeRecord(l, e); err != nil {
			return nil, err
		}
	}
	if err := h.Detach(xdp.ExpectID(at.Program.ID)); err != nil {
		e.record.Pending = nil
		return nil, held(errors.Join(err, a.writeRecord(l, e)), e)
	}
	return func() error {
		l, err := a.lock(context.Background())
		if err != nil {
			return err
		}
		defer l.unlock()
		now, err := a.readEntry(e.key)
		if errors.Is(err, os.ErrNotExist) || err == nil && now.link != nil {
			return nil // somebody finished it, or attached anew
		}
		if err != nil {
			return err
		}
		if p := now.record.Pending; now.recordErr == nil && (p == nil || p.Op != opDetach || p.By != c.owner.Process) {
			return nil // attached anew, by netlink
		}
		return a.removeRest(now)
	}, nil
}

// detachForeign detaches what Holdfast did not attach.
func detachForeign(r DetachRequest, at *xdp.Attachment) error {
	if at.Held == xdp.HeldByNetlink {
		return r.Hook.Detach(r.Expect)
	}
	if at.LinkID == 0 {
		e := conflict(opDetach, r.Hook, at, "ask its owner to detach it")
		e.Detail = "it can't be told which link holds the hook"
		return e
	}
	link, err := xdp.OpenID(at.LinkID)
	if err != nil {
		return err
	}
	defer link.Close()
	return link.Detach()
}

// change is one change by this process.
type change struct {
	op      string
	owner   Owner
	program *object.Loaded
	id      uint32
	digest  string
}

func (a *Arbiter) newChange(op string, p *object.Loaded) (change, error) {
	owner, err := a.who()
	if err != nil {
		return change{}, err
	}
	id, err := p.ProgramID()
	if err != nil {
		return change{}, &xdp.Error{Op: op, Err: xdp.ErrInvalid, Detail: "read the program: " + err.Error()}
	}
	return change{op: op, owner: owner, program: p, id: id, digest: p.Digest}, nil
}

func (c change) pending() *Pending {
	return &Pending{Op: c.op, By: c.owner.Process, UID: c.owner.UID, ProgramID: c.id, Digest: c.digest}
}

// repeats tells whether the change is what a killed process did here, under the
// same user, and was not acknowledged.
func (e *entry) repeats(c change) bool {
	if e == nil || e.recordErr != nil {
		return false
	}
	p := e.record.Pending
	inPlace := p.abandoned() && e.record.ProgramID == p.ProgramID
	return inPlace && p.Op == c.op && p.UID == c.owner.UID && p.Digest == c.digest
}

// madeBy tells whether the entry is what the request would make.
func (e *entry) madeBy(r AttachRequest) bool {
	return e.chain == nil && e.record.Name == r.Name
}

// repeat completes what a killed process had done.
func (a *Arbiter) repeat(l locked, e *entry, c change) (Acknowledge, error) {
	a.log("completed what a killed process had begun", "entry", e.key, "name", e.record.Name, "op", c.op)
	e.record.Pending.By = c.owner.Process
	if err := a.writeRecord(l, e); err != nil {
		return nil, err
	}
	return a.acknowledge(e.key, c), nil
}

func (a *Arbiter) acknowledge(key string, c change) Acknowledge {
	return func() error {
		l, err := a.lock(context.Background())
		if err != nil {
			return err
		}
		defer l.unlock()
		e, err := a.readEntry(key)
		if errors.Is(err, os.ErrNotExist) {
			return nil // detached since
		}
		if err != nil {
			return err
		}
		if p := e.record.Pending; e.recordErr != nil || p == nil || p.By != c.owner.Process {
			return nil // others went on from there
		}
		e.record.Pending = nil
		return a.writeRecord(l, e)
	}
}

// ownedHook says that the hook has a chain, whose members are changed by Apply.
func ownedHook(op string, h *xdp.Hook) error {
	return &xdp.Error{
		Op: op, Hook: h.String(), Err: xdp.ErrInvalid, Detail: "the hook is owned, and has a chain of members",
		Hint: "say which member is meant",
	}
}

// inOtherMode tells whether the program is not at the hook, but in the way there.
func inOtherMode(at *xdp.Attachment, h *xdp.Hook) bool {
	return h.Mode() != xdp.Auto && at.Mode != h.Mode()
}

// nothingAttached says so; at is what is attached in another mode, or nil.
func nothingAttached(op string, h *xdp.Hook, at *xdp.Attachment) *xdp.Error {
	if at != nil {
		return &xdp.Error{
			Op: op, Hook: h.String(), Err: xdp.ErrNotAttached,
			Detail: fmt.Sprintf("there is no program in %s mode, but %s", h.Mode(), at),
			Hint:   fmt.Sprintf("give mode %s, or none", at.Mode),
		}
	}
	return &xdp.Error{
		Op: op, Hook: h.String(), Err: xdp.ErrNotAttached, Detail: "there is no program",
		Hint: "`holdfast status --all-netns` shows where there are",
	}
}

// drifted says that what Holdfast attached ended although nobody asked Holdfast.
func drifted(op string, h *xdp.Hook, e *entry, hint string) *xdp.Error {
	return &xdp.Error{
		Op: op, Hook: h.String(), Err: xdp.ErrGone,
		Detail: fmt.Sprintf("what Holdfast attached here, %s, has ended: %s", e.whole(), e.dead(nil)),
		Hint:   hint,
	}
}

func conflict(op string, h *xdp.Hook, at *xdp.Attachment, hint string) *xdp.Error {
	if at.Program.Name == "" {
		at.Program = xdp.LookUpProgram(at.Program.ID)
	}
	xdp.FindHolders(at)
	return &xdp.Error{Op: op, Hook: h.String(), Err: xdp.ErrConflict, Rival: at, Hint: hint}
}

func unexpected(op string, h *xdp.Hook, at *xdp.Attachment, expect xdp.Expectation) *xdp.Error {
	e := conflict(op, h, at, "look at what is attached now and decide again")
	e.Detail = "expected " + expect.String()
	return e
}

func foreign(op string, h *xdp.Hook, at *xdp.Attachment, hint string) *xdp.Error {
	e := conflict(op, h, at, hint)
	e.Detail = "what is there is no permanent attachment of Holdfast's"
	return e
}

// held adds what Holdfast knows of the rival to a conflict.
func held(err error, e *entry) error {
	var conflict *xdp.Error
	if e == nil || e.recordErr != nil || !errors.Is(err, xdp.ErrConflict) || !errors.As(err, &conflict) {
		return err
	}
	return &HeldError{Err: conflict, Record: e.whole()}
}
