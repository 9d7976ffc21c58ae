package chain

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Action is what an XDP program returns for a packet.
type Action uint8

// The actions, as in enum xdp_action.
const (
	Aborted Action = iota
	Drop
	Pass
	Tx
	Redirect
)

var actionNames = [...]string{"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"}

// AllActions returns every action there is, in the order of their numbers.
func AllActions() []Action { return []Action{Aborted, Drop, Pass, Tx, Redirect} }

func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("XDP action %d", uint8(a))
}

// ErrAction says that a word is not the name of an action.
var ErrAction = errors.New("not an XDP action")

// ParseAction reads the name of an action, in upper or lower case, with XDP_
// before it or without. Anything else is an ErrAction.
func ParseAction(s string) (Action, error) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "XDP_") {
		name = "XDP_" + name
	}
	if i := slices.Index(actionNames[:], name); i >= 0 {
		return Action(i), nil
	}
	return 0, fmt.Errorf("%q is %w; there are %s", s, ErrAction, strings.Join(actionNames[:], ", "))
}

// Actions is a set of actions: bit n stands for the action n.
type Actions uint32

// Set returns the set of these actions.
func Set(actions ...Action) Actions {
	var s Actions
	for _, a := range actions {
		s = s.With(a)
	}
	return s
}

// ParseActions reads a list of actions as in "XDP_PASS,drop", see
// [ParseAction]. Blanks around the names don't count. The empty text is the
// empty set: the chain never goes on.
func ParseActions(s string) (Actions, error) {
	var set Actions
	if strings.TrimSpace(s) == "" {
		return set, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		a, err := ParseAction(strings.TrimSpace(name))
		if err != nil {
			return 0, err
		}
		set = set.With(a)
	}
	return set, nil
}

// Has tells whether the action is in the set.
func (s Actions) Has(a Action) bool { return s&(1<<a) != 0 }

// With returns the set with the action in it.
func (s Actions) With(a Action) Actions { return s | 1<<a }

// Without returns the set with the action not in it.
func (s Actions) Without(a Action) Actions { return s &^ (1 << a) }

// String lists the actions by name, as in "XDP_DROP,XDP_PASS".
func (s Actions) String() string {
	var names []string
	for _, a := range AllActions() {
		if s.Has(a) {
			names = append(names, a.String())
		}
	}
	return strings.Join(names, ",")
}

// MarshalText writes the list that ParseActions reads.
func (s Actions) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the list that MarshalText writes.
func (s *Actions) UnmarshalText(b []byte) error {
	set, err := ParseActions(string(b))
	if err == nil {
		*s = set
	}
	return err
}

// What a member has that does not say otherwise: it runs at priority 50, and
// the chain goes on after XDP_PASS.
const (
	DefaultPriority  uint32  = 50
	DefaultProceedOn Actions = 1 << Pass
)
