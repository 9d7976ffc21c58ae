package xdp

import (
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Attach attaches the program by netlink, or replaces what netlink attached, if
// the expectation holds: [Empty], [Expect], [ExpectID] or [Any]. Nobody holds
// such an attachment: it is permanent, and everybody with CAP_NET_ADMIN can
// replace or detach it. The program stays the caller's and may be closed.
//
// In mode Auto it replaces in the mode that is in use.
//
// Errors: ErrConflict, ErrPort, ErrMTU, ErrDeviceBound, ErrNotSupported,
// ErrNotFound, ErrPermission, ErrInvalid.
func (h *Hook) Attach(prog *ebpf.Program, expect Expectation) error {
	op := "attach"
	if expect.kind == expectProgram {
		op = "replace"
	}
	if err := checkProgram(op, h, prog); err != nil {
		return err
	}
	mode, err := h.modeInUse(op)
	if err != nil {
		return err
	}
	return h.set(change{op: op, prog: prog, expect: expect, mode: mode}, prog.FD())
}

// Detach detaches what netlink attached, if the expectation holds: [Expect],
// [ExpectID] or [Any]. The kernel does nothing, and says nothing, where the hook
// is empty or the program runs in another mode than the one that was named; that
// is ErrNotAttached here.
//
// Errors: ErrConflict when another program is attached, or a link holds the
// hook; ErrNotAttached, ErrNotFound, ErrPermission, ErrInvalid.
func (h *Hook) Detach(expect Expectation) error {
	const op = "detach"
	if expect.kind == expectNothing || expect.kind == expectEmpty {
		return noExpectation(op, h.String(), expect)
	}
	// With a program to expect the kernel refuses to detach nothing, and it is
	// looked afterwards what is there.
	if expect.kind == expectProgram && h.mode != Auto {
		err := h.set(change{op: op, expect: expect, mode: h.mode}, -1)
		if err == nil {
			return nil
		}
		if _, none := h.attachedIn(op, h.mode); errors.Is(none, ErrNotAttached) {
			return none
		}
		return err
	}
	mode, err := h.attachedIn(op, h.mode)
	if err != nil {
		return err
	}
	return h.set(change{op: op, expect: expect, mode: mode}, -1)
}

// attachedIn returns the mode, for Auto the one that is in use, or
// ErrNotAttached if nothing is attached in it.
func (h *Hook) attachedIn(op string, mode Mode) (Mode, error) {
	d, err := h.device(op)
	if err != nil {
		return mode, err
	}
	programs := newInterface(d).Programs
	if mode == Auto {
		mode = programs.inUse()
	}
	if mode == Auto || programs.At(mode) == 0 {
		return mode, h.notAttached(op, programs)
	}
	return mode, nil
}

// change is what was asked of the kernel, for explaining its answer.
type change struct {
	op     string
	prog   *ebpf.Program // nil to detach
	expect Expectation
	mode   Mode
}

func (h *Hook) set(c change, fd int) error {
	flags := c.mode.flags()
	var err error
	switch c.expect.kind {
	case expectAny:
		err = h.ns.conn.SetXDP(h.index, fd, flags)
	case expectEmpty:
		err = h.ns.conn.ReplaceXDP(h.index, fd, -1, flags)
	case expectProgram:
		expected, release, openErr := c.expect.open()
		if errors.Is(openErr, unix.ENOENT) {
			return h.unloaded(c)
		}
		if openErr != nil {
			return expectationError(c.op, h.String(), c.expect, openErr)
		}
		defer release()
		err = h.ns.conn.ReplaceXDP(h.index, fd, expected, flags)
	default:
		return noExpectation(c.op, h.String(), c.expect)
	}
	if err != nil {
		return h.explain(c, err)
	}
	return nil
}

// modeInUse is the hook's mode; for Auto, that of the program that is attached,
// or still Auto where there is none, which the kernel resolves.
func (h *Hook) modeInUse(op string) (Mode, error) {
	if h.mode != Auto {
		return h.mode, nil
	}
	d, err := h.device(op)
	if err != nil {
		return Auto, err
	}
	return newInterface(d).Programs.inUse(), nil
}

// inUse is the mode of the program that sees packets, or Auto.
func (p Programs) inUse() Mode {
	switch {
	case p.Native != 0:
		return Native
	case p.Generic != 0:
		return Generic
	case p.Offload != 0:
		return Offload
	default:
		return Auto
	}
}

func (h *Hook) notAttached(op string, p Programs) error { return notAttached(op, h.String(), p) }

func notAttached(op, hook string, p Programs) *Error {
	e := &Error{Op: op, Hook: hook, Err: ErrNotAttached, Detail: "the hook is empty", Hint: "there is nothing to do"}
	if other := p.inUse(); other != Auto {
		e.Detail = "the program there is attached in " + other.String() + " mode"
		e.Hint = "name that mode"
	}
	return e
}
