package owned

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-bpf/holdfast/chain"
)

// Lifetime is when a member ends.
type Lifetime string

const (
	// Held ends when the last descriptor of its owner does.
	Held Lifetime = "held"
	// Permanent stays until somebody entitled removes it.
	Permanent Lifetime = "permanent"
)

// Member is one program of the chain.
type Member struct {
	// Name is unique in the chain, see [CheckName].
	Name      string        `json:"name"`
	Priority  uint32        `json:"priority"`
	ProceedOn chain.Actions `json:"proceed_on"`
	Lifetime  Lifetime      `json:"lifetime"`
	// Generation is that of the chain in which the member was changed last.
	Generation uint64 `json:"generation"`
	// ID names this version of the member: each add and each replace makes a
	// new one, and it is never 0. Whoever executes the transaction keeps what
	// belongs to the version under this number.
	ID uint32 `json:"id"`
}

func (m Member) String() string {
	return fmt.Sprintf("%q is a %s member at priority %d, last changed in generation %d", m.Name, m.Lifetime, m.Priority, m.Generation)
}

// Chain is the state of one hook. The zero value is that of a hook which nobody
// has touched.
type Chain struct {
	// Generation counts the changes.
	Generation uint64 `json:"generation"`
	// NextID is given to the next version of a member.
	NextID uint32 `json:"next_id"`
	// Exclusive tells that the only member wants the hook to itself.
	Exclusive bool `json:"exclusive,omitempty"`
	// Locked tells that nothing may be attached.
	Locked bool `json:"locked,omitempty"`
	// Stats tells that the chain counts what its members return.
	Stats bool `json:"stats,omitempty"`
	// Members are in the order that they run in: priorities never fall.
	Members []Member `json:"members,omitempty"`
}

// Find is the place of the member of that name, or -1.
func (c Chain) Find(name string) int {
	return slices.IndexFunc(c.Members, func(m Member) bool { return m.Name == name })
}

// Op is what a change does.
type Op string

const (
	// Add makes a member.
	Add Op = "add"
	// Remove takes one out of the chain.
	Remove Op = "remove"
	// Replace puts another program into a member's place.
	Replace Op = "replace"
	// Set changes what decides when a member runs, and leaves its program.
	Set Op = "set"
)

// Change is one step of a transaction. What it has no use for must be left out.
type Change struct {
	Op   Op     `json:"op"`
	Name string `json:"name"`
	// Expect is the generation that the member must have had before the
	// transaction, or 0 where any will do. Of remove, replace and set.
	Expect uint64 `json:"expect,omitempty"`
	// Priority is, of an add, [chain.DefaultPriority] where it is nil. Of a
	// set it moves the member behind those that have the priority already.
	Priority *uint32 `json:"priority,omitempty"`
	// Before and After name the neighbours of an added member, or of one that a
	// set moves. With one of them the member runs right beside it. With both it
	// runs somewhere between the two: where its priority belongs, and right
	// before the one that is named Before if no priority is given.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// ProceedOn is, of an add, [chain.DefaultProceedOn] where it is nil. A
	// replace or a set without it leaves the member's.
	ProceedOn *chain.Actions `json:"proceed_on,omitempty"`
	// Lifetime is of an add only, and Permanent where it is empty.
	Lifetime Lifetime `json:"lifetime,omitempty"`
	// Exclusive asks for the hook to itself, of an add or a set, or, of a set,
	// gives that up.
	Exclusive *bool `json:"exclusive,omitempty"`
}

// Transaction is a set of changes of which all happen or none.
type Transaction struct {
	// Expect is the generation that the chain must have, nil where any will do.
	Expect *uint64 `json:"expect,omitempty"`
	// Changes apply one after the other. The same member may be in several:
	// one that is removed and added is a new member of the same name.
	Changes []Change `json:"changes"`
	// Stats is whether the chain shall count what its members return, nil where
	// that is to stay as it is. A chain that loses its last member forgets it.
	Stats *bool `json:"stats,omitempty"`
	// MaxMembers is what the engine has room for, 0 where there is no limit. A
	// chain does not grow beyond it; what counts is the end of the transaction.
	MaxMembers int `json:"max_members,omitempty"`
}

// Result is what a transaction makes of a chain.
type Result struct {
	// After is the chain to be. It is the chain that was, generation and all,
	// if nothing is different.
	After Chain
	// IDs has for each change the version that it is about: of an add or a
	// replace the new one, of a remove the one that goes, of a set the one that
	// stays. A version that a later change removes or replaces is not in After.
	IDs []uint32
	// Diff is what is different.
	Diff Diff
}

// Apply returns what the transaction makes of the chain, which it leaves as it
// is. The error is an [*Error].
func (c Chain) Apply(t Transaction) (Result, error) {
	if t.Expect != nil && *t.Expect != c.Generation {
		return Result{}, &Error{
			Op: opChange, Err: ErrGeneration,
			Detail: fmt.Sprintf("expected the chain's generation %d, and it is %d", *t.Expect, c.Generation),
			Hint:   hintDecideAgain,
		}
	}
	w := work{before: c, after: c, touched: map[string]bool{}}
	w.after.Members = slices.Clone(c.Members)
	var last Change // that made a member
	for _, ch := range t.Changes {
		id, err := w.apply(ch)
		if err != nil {
			return Result{}, err
		}
		w.ids = append(w.ids, id)
		if ch.Op == Add {
			last = ch
		}
	}
	if n := len(w.after.Members); t.MaxMembers > 0 && n > t.MaxMembers && n > len(c.Members) {
		return Result{}, &Error{
			Op: last.Op, Member: last.Name, Err: ErrFull,
			Detail: fmt.Sprintf("the chain would have %d members, and there is room for %d", n, t.MaxMembers),
			Hint:   "remove a member first; there are " + list(c.Members),
		}
	}
	if err := w.count(t.Stats); err != nil {
		return Result{}, err
	}
	return w.result(), nil
}

// Lock returns the chain as one that nothing may be attached to. Only an empty
// one can be locked. One that is locked already stays as it is.
func (c Chain) Lock() (Chain, error) {
	if len(c.Members) > 0 {
		return Chain{}, &Error{
			Op: opLock, Err: ErrNotEmpty, Detail: "there are " + list(c.Members), Rival: &c.Members[0],
			Hint: "remove them first",
		}
	}
	if !c.Locked {
		c.Locked, c.Stats = true, false
		c.Generation++
	}
	return c, nil
}

// Unlock returns the chain as one that can be attached to.
func (c Chain) Unlock() Chain {
	if c.Locked {
		c.Locked = false
		c.Generation++
	}
	return c
}

// Check tells what is wrong with a chain that came from outside: a priority that
// falls, a name or an ID that is there twice or can't be one. The error is an
// ErrInvalid.
func (c Chain) Check() error {
	bad := func(m Member, detail string) error {
		return &Error{Op: opCheck, Member: m.Name, Err: ErrInvalid, Detail: detail, Hint: "remove all members, and add them anew"}
	}
	ids := map[uint32]bool{}
	for i, m := range c.Members {
		switch {
		case CheckName(m.Name) != nil:
			return bad(m, CheckName(m.Name).Error())
		case c.Find(m.Name) != i:
			return bad(m, "two members have this name")
		case m.ID == 0 || ids[m.ID]:
			return bad(m, fmt.Sprintf("its ID, %d, is no member's or another one's", m.ID))
		case i > 0 && m.Priority < c.Members[i-1].Priority:
			return bad(m, fmt.Sprintf("it has priority %d and runs after priority %d", m.Priority, c.Members[i-1].Priority))
		case m.Lifetime != Held && m.Lifetime != Permanent:
			return bad(m, fmt.Sprintf("its lifetime is %q", m.Lifetime))
		case m.Generation > c.Generation:
			return bad(m, fmt.Sprintf("its generation, %d, is later than the chain's, %d", m.Generation, c.Generation))
		case c.Locked:
			return bad(m, "the hook is locked, and it has a member")
		case c.Exclusive && len(c.Members) > 1:
			return bad(m, "the hook is exclusive, and it has several members")
		}
		ids[m.ID] = true
	}
	if c.Exclusive && len(c.Members) == 0 {
		return bad(Member{}, "the hook is exclusive, and has no member")
	}
	if c.Stats && len(c.Members) == 0 {
		return bad(Member{}, "the chain counts, and has no member")
	}
	return nil
}

// MaxName is how many bytes a member's name can have.
const MaxName = 64

// CheckName tells why the text can't be a member's name. A name is printable
// UTF-8 of 1 to MaxName bytes, without a blank at either end, so that it can be
// told from what is around it; it contains no slash, and does not begin with a
// dash, so that it is neither a path nor a flag.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("a member's name is empty")
	case len(name) > MaxName:
		return fmt.Errorf("%.20q… is too long for a member's name: %d bytes at most", name, MaxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%q can't be a member's name: it is not UTF-8", name)
	case name[0] == '-':
		return fmt.Errorf("%q can't be a member's name: it begins as a flag does", name)
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("%q can't be a member's name: it begins or ends with a blank", name)
	}
	for _, r := range name {
		if r == '/' || !unicode.IsPrint(r) {
			return fmt.Errorf("%q can't be a member's name: it contains %q", name, r)
		}
	}
	return nil
}
