package owned

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-bpf/holdfast/chain"
)

// Why a chain can't be changed, for errors.Is. Each is wrapped by an [*Error].
var (
	// ErrExists: another member has the name. A conflict.
	ErrExists = errors.New("the name is taken")
	// ErrGeneration: the chain or the member is of another generation than was
	// expected. A conflict.
	ErrGeneration = errors.New("conflict")
	// ErrExclusive: a member has the hook to itself, or wants it while there are
	// others. A conflict.
	ErrExclusive = errors.New("the hook can't be shared")
	// ErrLocked: nothing may be attached to the hook. A conflict.
	ErrLocked = errors.New("the hook is locked")
	// ErrNotEmpty: a hook that has members can't be locked. A conflict.
	ErrNotEmpty = errors.New("the hook has members")
	// ErrFull: the engine has no room for that many members.
	ErrFull = errors.New("the chain is full")
	// ErrNoMember: no member has the name. It is [chain.ErrNoMember].
	ErrNoMember = chain.ErrNoMember
	// ErrOrder: the member can't run where it was asked to. It is
	// [chain.ErrOrder].
	ErrOrder = chain.ErrOrder
	// ErrInvalid: what was asked for makes no sense.
	ErrInvalid = errors.New("invalid")
)

// IsConflict tells whether the error is one with what is there: somebody else's
// member, or what is not as it was expected to be.
func IsConflict(err error) bool {
	return slices.ContainsFunc([]error{ErrExists, ErrGeneration, ErrExclusive, ErrLocked, ErrNotEmpty}, func(c error) bool {
		return errors.Is(err, c)
	})
}

// What an error's Op is beside those of changes.
const (
	opChange Op = "change the chain"
	opLock   Op = "lock"
	opCheck  Op = "read the chain"
)

const hintDecideAgain = "look at the chain as it is now and decide again"

// Error is what every function of this package returns that changes a chain.
type Error struct {
	// Op is what was tried.
	Op Op
	// Member is the name in the change that was refused, empty where it is
	// about the chain as a whole.
	Member string
	// Err is one of the package's sentinels.
	Err error
	// Detail says more than the sentinel, and Hint what to do.
	Detail, Hint string
	// Rival is the member in the way, as it is; nil where there is none.
	Rival *Member
}

// Error is one sentence, from the outside in, that ends with what to do.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Op))
	if e.Member != "" {
		fmt.Fprintf(&b, " %q", e.Member)
	}
	fmt.Fprintf(&b, ": %s", e.Err)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Rival != nil {
		b.WriteString(": " + e.Rival.String())
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Err }

// list names members for a message.
func list(members []Member) string {
	if len(members) == 0 {
		return "no members"
	}
	var s []string
	for _, m := range members {
		s = append(s, fmt.Sprintf("%q at %d", m.Name, m.Priority))
	}
	return strings.Join(s, ", ")
}
