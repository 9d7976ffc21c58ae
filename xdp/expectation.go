package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

// Expectation is what must still be true for a change to happen: the kernel
// checks it and makes the change in one step. The zero value is none, and every
// change refuses it: a change without an expectation is a choice that the
// caller spells out, with [Any].
type Expectation struct {
	kind expectKind
	id   uint32
	prog *ebpf.Program
}

type expectKind uint8

const (
	expectNothing expectKind = iota
	expectEmpty
	expectProgram
	expectAny
)

var (
	// Empty expects that no program is attached in the hook's mode.
	Empty = Expectation{kind: expectEmpty}
	// Any expects nothing: whatever is attached is replaced or detached.
	Any = Expectation{kind: expectAny}
)

// Expect expects that this very program is attached. The program stays the
// caller's.
func Expect(prog *ebpf.Program) Expectation {
	return Expectation{kind: expectProgram, prog: prog}
}

// ExpectID expects that the program of that id is attached. Carrying it out
// needs CAP_SYS_ADMIN, to open a program by its id.
func ExpectID(id uint32) Expectation {
	return Expectation{kind: expectProgram, id: id}
}

// Holds tells whether the expectation is met where the program of that id is
// attached, 0 for none. It is for telling early; only the kernel can tell and
// act in one step.
func (e Expectation) Holds(programID uint32) bool {
	switch e.kind {
	case expectAny:
		return true
	case expectEmpty:
		return programID == 0
	case expectProgram:
		return programID != 0 && e.programID() == programID
	default:
		return false
	}
}

// IsZero tells whether nothing was said, not even Any.
func (e Expectation) IsZero() bool { return e.kind == expectNothing }

// IsAny tells whether nothing is expected, by choice.
func (e Expectation) IsAny() bool { return e.kind == expectAny }

func (e Expectation) String() string {
	switch e.kind {
	case expectEmpty:
		return "empty"
	case expectAny:
		return "any"
	case expectProgram:
		if e.prog != nil {
			return "program " + e.prog.String()
		}
		return fmt.Sprintf("program %d", e.id)
	default:
		return "nothing"
	}
}

// open returns a descriptor of the expected program and a function that gives
// it back. A program that is no longer loaded is ENOENT.
func (e Expectation) open() (fd int, release func(), err error) {
	if e.prog != nil {
		if e.prog.FD() < 0 {
			// To netlink, expecting -1 is to expect an empty hook.
			return -1, nil, errClosed
		}
		return e.prog.FD(), func() {}, nil
	}
	if e.id == 0 {
		return -1, nil, errNoProgram
	}
	opened, err := kernel.ProgramByID(e.id)
	if err != nil {
		return -1, nil, err
	}
	return int(opened), func() { opened.Close() }, nil
}

var (
	errClosed    = errors.New("the expected program is closed")
	errNoProgram = errors.New("the expectation names no program")
)

// expectationError says why the expected program could not be opened.
func expectationError(op, hook string, e Expectation, err error) error {
	switch {
	case errors.Is(err, errClosed):
		return &Error{Op: op, Hook: hook, Err: ErrInvalid, Detail: err.Error(), Hint: "close it afterwards, or expect it by its id"}
	case errors.Is(err, errNoProgram):
		return &Error{Op: op, Hook: hook, Err: ErrInvalid, Detail: err.Error(), Hint: "say which program is expected, or Any"}
	}
	return pinError(op, e.String(), err)
}
