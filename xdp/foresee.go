package xdp

// Intent is a change that somebody thinks of.
type Intent uint8

const (
	// ToOwn is to attach by a link, see [Hook.AttachLink].
	ToOwn Intent = iota
	// ToShare is to attach by netlink to an empty hook, see [Hook.Attach].
	ToShare
	// ToReplace is to replace by netlink what is attached, expecting it.
	ToReplace
	// ToDetach is to detach by netlink what is attached, expecting it.
	ToDetach
)

// Foresee tells what is in the way of a change of the interface, in a mode, as
// far as what is attached decides that: nil where nothing is. It is the error
// that the change would return, but for the kernel's own words and the holders. Whether the driver
// takes a program it can't know, nor what happens in the meantime. master is what
// is attached to the bridge or bond that the interface is a port of, nil where it
// is none, and before Linux 5.15, where the two have nothing to do with each other.
//
// It asks nobody: what it says is from what was read before.
func (s State) Foresee(i Intent, mode Mode, master *State) *Error {
	e := &Error{Op: "attach", Hook: s.Interface.Name}
	if mode != Auto {
		e.Hook += " (" + mode.String() + ")"
	}
	expect := expectNothing
	switch i {
	case ToShare:
		expect = expectEmpty
	case ToReplace:
		e.Op, expect = "replace", expectProgram
	case ToDetach:
		e.Op, expect = "detach", expectProgram
	}
	if i != ToDetach && master != nil && master.Interface.Programs != (Programs{}) {
		e.addPort(s.Interface.Name, *master)
		return e
	}
	e.Rival = s.At(mode)
	if e.Rival != nil && expect == expectProgram && e.Rival.Held != HeldByLink {
		return nil
	}
	if e.Rival == nil && i != ToDetach && mode != Offload {
		e.Rival = s.At(Auto) // native and generic exclude each other
	}
	switch {
	case e.Rival == nil && expect == expectProgram:
		return notAttached(e.Op, e.Hook, s.Interface.Programs)
	case e.Rival == nil:
		return nil
	}
	e.Err = ErrConflict
	switch expect {
	case expectEmpty:
		e.Detail = "expected an empty hook"
	case expectProgram:
		e.Detail = "expected " + ExpectID(e.Rival.Program.ID).String()
	}
	e.Hint = rivalHint(e.Rival.Held, i == ToOwn, expect)
	return e
}
