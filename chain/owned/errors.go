package owned

import (
	"errors"
	"fmt"
)

// What keeps a transaction from being made, for errors.Is. Each is wrapped by an
// [*Error].
var (
	// ErrExists: a member has the name already.
	ErrExists = errors.New("a member of that name is there")
	// ErrNoMember: no member has the name.
	ErrNoMember = errors.New("no such member")
	// ErrGeneration: the chain or the member is not what was expected.
	ErrGeneration = errors.New("conflict")
	// ErrExclusive: the only member wants the hook to itself.
	ErrExclusive = errors.New("the hook is exclusive")
	// ErrShared: the hook has members, and was to have none.
	ErrShared = errors.New("the hook has members")
	// ErrLocked: nothing may be attached to the hook.
	ErrLocked = errors.New("the hook is locked")
	// ErrFull: there is no room for another member.
	ErrFull = errors.New("the chain is full")
	// ErrOrder: a member can't run where it was asked to.
	ErrOrder = errors.New("the order contradicts itself")
	// ErrInvalid: what was asked for makes no sense.
	ErrInvalid = errors.New("invalid")
)

// Error says why a transaction can't be made.
type Error struct {
	// Op is what was tried: "add", "remove", "replace", "set", "change", "lock",
	// "unlock".
	Op string
	// Member is the name of the one that the change was about, or empty.
	Member string
	// Err is one of the package's sentinels.
	Err error
	// Detail says more than the sentinel, and Hint what to do.
	Detail, Hint string
	// Rival is the member in the way, nil where none is.
	Rival *Member
}

func (e *Error) Error() string {
	s := e.Op
	if e.Member != "" {
		s += fmt.Sprintf(" %q", e.Member)
	}
	s += ": " + e.Err.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Err }

// IsConflict tells whether the error is one with what is there: somebody else's
// member, or one that is not as it was expected to be.
func IsConflict(err error) bool {
	for _, c := range []error{ErrExists, ErrGeneration, ErrExclusive, ErrShared, ErrLocked} {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

func (c Change) fail(sentinel error, detail, hint string) *Error {
	return &Error{Op: string(c.Op), Member: c.Name, Err: sentinel, Detail: detail, Hint: hint}
}
