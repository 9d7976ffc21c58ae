// Package owned is what a transaction makes of the chain of an owned hook: which
// members it has afterwards, in which order, and why it can't be. It is pure:
// whoever keeps a chain, in the kernel or in memory, decides with it.
//
// Members run by priority, the lowest first, and those of the same priority in
// the order that they came in, unless one was placed before or after another.
//
// Every transaction that changes something gives the chain a new generation, and
// the members that it touches the same one. So a generation is what a change can
// expect: that nobody has changed the chain, or the member, meanwhile.
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
	// Held: when the last process that holds it ends.
	Held Lifetime = "held"
	// Permanent: when someone entitled takes it out of the chain.
	Permanent Lifetime = "permanent"
)

// Member is one program of a chain.
type Member struct {
	// Name is unique in the chain.
	Name      string        `json:"name"`
	Priority  uint32        `json:"priority"`
	ProceedOn chain.Actions `json:"proceed_on"`
	Lifetime  Lifetime      `json:"lifetime"`
	// Generation is that of the chain when the member was last changed.
	Generation uint64 `json:"generation"`
	// ID names this version of the member: each add and each replace makes a
	// new one. Whoever carries a transaction out keeps what belongs to the
	// member under it.
	ID uint32 `json:"-"`
}

// Chain is the state of one hook. The zero value is that of an empty one.
type Chain struct {
	Generation uint64 `json:"generation"`
	// NextID is the lowest that no member had yet.
	NextID uint32 `json:"-"`
	// Exclusive tells that the only member wants the hook to itself.
	Exclusive bool `json:"exclusive,omitempty"`
	// Locked tells that nothing may be attached.
	Locked bool `json:"locked,omitempty"`
	// Members are in the order that they run in: priorities never fall.
	Members []Member `json:"members"`
}

// Op is what a change does.
type Op string

const (
	// Add brings in a new member.
	Add Op = "add"
	// Remove takes a member out.
	Remove Op = "remove"
	// Replace exchanges a member's program. It keeps its place.
	Replace Op = "replace"
	// Set changes where a member runs, after which actions the chain goes on
	// from it, or whether it wants the hook to itself.
	Set Op = "set"
)

// Change is one change of a chain.
type Change struct {
	Op   Op
	Name string
	// Expect is the generation that the member must have, 0 if any will do. It
	// is of no use to an Add, which expects that there is no such member.
	Expect uint64
	// Priority, Before and After say where the member runs, of an Add or a Set.
	// Before and After name members that it is to run right before or after,
	// with their priority if none is given. An Add without them runs behind all
	// of its priority, which is [chain.DefaultPriority] where none is given; so
	// does a Set that gives another priority than the member has.
	Priority      *uint32
	Before, After string
	// ProceedOn is [chain.DefaultProceedOn] for an Add that does not say. Of
	// other changes nil keeps what there is.
	ProceedOn *chain.Actions
	// Lifetime of an Add is Permanent where it is empty.
	Lifetime Lifetime
	// Exclusive asks for the hook to itself, or gives it up. Nil keeps what
	// there is; an Add that does not say shares.
	Exclusive *bool
}

// Transaction is a list of changes, which are made one after the other, and all
// or none of them.
type Transaction struct {
	// Expect is the generation that the chain must have, nil if any will do.
	Expect  *uint64
	Changes []Change
	// MaxMembers is what there is room for, 0 if there is no limit.
	MaxMembers int
}

// Result is what comes of a transaction.
type Result struct {
	After Chain
	// IDs has for each change the id of the member version that it is about: for
	// an Add and a Replace the new one.
	IDs  []uint32
	Diff Diff
}

// Apply tells what the transaction makes of the chain, which it leaves as it is.
// The error is an [*Error].
func (c Chain) Apply(t Transaction) (Result, error) {
	if t.Expect != nil && *t.Expect != c.Generation {
		return Result{}, &Error{
			Op: "change", Err: ErrGeneration,
			Detail: fmt.Sprintf("the chain is at generation %d, expected %d", c.Generation, *t.Expect),
			Hint:   "look at what it is now and decide again",
		}
	}
	e := edit{before: c, after: c, generation: c.Generation + 1}
	e.after.Members = slices.Clone(c.Members)
	var ids []uint32
	for _, change := range t.Changes {
		id, err := e.make(change)
		if err != nil {
			return Result{}, err
		}
		ids = append(ids, id)
	}
	if n := len(e.after.Members); t.MaxMembers > 0 && n > t.MaxMembers {
		last := e.after.Members[n-1]
		return Result{}, &Error{
			Op: string(Add), Member: last.Name, Err: ErrFull,
			Detail: fmt.Sprintf("the chain would have %d members, and there is room for %d", n, t.MaxMembers),
			Hint:   "take one out first",
		}
	}
	if e.changed {
		e.after.Generation = e.generation
	}
	return Result{After: e.after, IDs: ids, Diff: diff(c, e.after)}, nil
}

// edit is a transaction under way.
type edit struct {
	before, after Chain
	generation    uint64
	changed       bool
}

// make makes one change and returns the id of the member version that it is
// about.
func (e *edit) make(c Change) (uint32, error) {
	switch c.Op {
	case Add:
		return e.add(c)
	case Remove, Replace, Set:
	default:
		return 0, c.fail(ErrInvalid, fmt.Sprintf("%q is no change", c.Op), "use add, remove, replace or set")
	}
	i := e.find(c.Name)
	if i < 0 {
		return 0, c.fail(ErrNoMember, e.after.list(), "name one of these")
	}
	m := e.after.Members[i]
	if c.Expect != 0 && c.Expect != e.generationBefore(m) {
		err := c.fail(ErrGeneration, fmt.Sprintf("it was changed: it is at generation %d, expected %d", e.generationBefore(m), c.Expect), "look at what it is now and decide again")
		err.Rival = &m
		return 0, err
	}
	switch c.Op {
	case Remove:
		e.remove(i)
		return m.ID, nil
	case Replace:
		e.touch(i).ID = e.newID()
		if c.ProceedOn != nil {
			e.after.Members[i].ProceedOn = *c.ProceedOn
		}
		return e.after.Members[i].ID, nil
	}
	return m.ID, e.set(i, c)
}

func (e *edit) add(c Change) (uint32, error) {
	if err := checkName(c); err != nil {
		return 0, err
	}
	if c.Expect != 0 {
		return 0, c.fail(ErrInvalid, "what is not there yet has no generation", "expect one of the chain instead")
	}
	rival := func(sentinel error, detail, hint string) error {
		err := c.fail(sentinel, detail, hint)
		if len(e.after.Members) > 0 {
			err.Rival = &e.after.Members[0]
		}
		return err
	}
	exclusive := c.Exclusive != nil && *c.Exclusive
	switch i := e.find(c.Name); {
	case e.after.Locked:
		return 0, c.fail(ErrLocked, "nothing may be attached there", "unlock the hook first")
	case i >= 0:
		err := c.fail(ErrExists, fmt.Sprintf("at priority %d", e.after.Members[i].Priority), "choose another name, or replace it")
		err.Rival = &e.after.Members[i]
		return 0, err
	case e.after.Exclusive:
		return 0, rival(ErrExclusive, fmt.Sprintf("%q has it to itself", e.after.Members[0].Name), "its owner must share the hook, or leave")
	case exclusive && len(e.after.Members) > 0:
		return 0, rival(ErrShared, e.after.list(), "take them out first, or share the hook with them")
	}
	m := Member{
		Name: c.Name, Priority: chain.DefaultPriority, ProceedOn: chain.DefaultProceedOn, Lifetime: Permanent,
		ID: e.newID(),
	}
	if c.ProceedOn != nil {
		m.ProceedOn = *c.ProceedOn
	}
	if c.Lifetime != "" {
		m.Lifetime = c.Lifetime
	}
	at, priority, err := e.place(c, m.Priority)
	if err != nil {
		return 0, err
	}
	m.Priority = priority
	e.after.Members = slices.Insert(e.after.Members, at, m)
	e.touch(at)
	e.after.Exclusive = exclusive
	return m.ID, nil
}

func (e *edit) remove(i int) {
	e.after.Members = slices.Delete(e.after.Members, i, i+1)
	e.changed = true
	if len(e.after.Members) == 0 {
		e.after.Exclusive = false
	}
}

func (e *edit) set(i int, c Change) error {
	m := e.after.Members[i]
	if c.ProceedOn != nil && *c.ProceedOn != m.ProceedOn {
		e.touch(i).ProceedOn = *c.ProceedOn
	}
	if c.Exclusive != nil && *c.Exclusive != e.after.Exclusive {
		if *c.Exclusive && len(e.after.Members) > 1 {
			others := Chain{Members: slices.Delete(slices.Clone(e.after.Members), i, i+1)}
			err := c.fail(ErrShared, others.list(), "take them out first")
			err.Rival = &others.Members[0]
			return err
		}
		e.after.Exclusive = *c.Exclusive
		e.touch(i)
	}
	if c.Before == "" && c.After == "" && (c.Priority == nil || *c.Priority == m.Priority) {
		return nil
	}
	m = e.after.Members[i]
	e.after.Members = slices.Delete(e.after.Members, i, i+1)
	at, priority, err := e.place(c, m.Priority)
	if err != nil {
		return err
	}
	moved := at != i || priority != m.Priority
	m.Priority = priority
	e.after.Members = slices.Insert(e.after.Members, at, m)
	if moved {
		e.touch(at)
	}
	return nil
}

// place finds where among the others a member is to run, and with which
// priority; otherwise is the one that it has where nothing is said.
func (e *edit) place(c Change, otherwise uint32) (at int, priority uint32, err error) {
	ms := e.after.Members
	lower, upper := 0, len(ms) // it may come to stand at any of lower to upper
	if c.After != "" {
		i := e.find(c.After)
		if i < 0 {
			return 0, 0, c.fail(ErrNoMember, fmt.Sprintf("there is no %q for it to run after: %s", c.After, e.after.list()), "name one of these")
		}
		lower = i + 1
	}
	if c.Before != "" {
		i := e.find(c.Before)
		if i < 0 {
			return 0, 0, c.fail(ErrNoMember, fmt.Sprintf("there is no %q for it to run before: %s", c.Before, e.after.list()), "name one of these")
		}
		upper = i
	}
	if lower > upper {
		return 0, 0, c.fail(ErrOrder, fmt.Sprintf("%q does not run before %q", c.After, c.Before), "the order is "+e.after.list())
	}
	if c.Priority != nil {
		otherwise = *c.Priority
	}
	switch {
	case c.Before != "":
		at, priority = upper, ms[upper].Priority
	case c.After != "":
		at, priority = lower, ms[lower-1].Priority
	default:
		at = slices.IndexFunc(ms, func(m Member) bool { return m.Priority > otherwise })
		if at < 0 {
			at = len(ms)
		}
		return at, otherwise, nil
	}
	if c.Priority == nil || *c.Priority == priority {
		return at, priority, nil
	}
	// With a priority of its own it stands behind all of that priority that it
	// may stand behind.
	priority = *c.Priority
	for at = upper; at > lower && ms[at-1].Priority > priority; {
		at--
	}
	if at > 0 && ms[at-1].Priority > priority || at < len(ms) && ms[at].Priority < priority {
		return 0, 0, c.fail(ErrOrder, fmt.Sprintf("priority %d is not where it was to be placed", priority), "leave the priority out, or choose one that fits: "+e.after.list())
	}
	return at, priority, nil
}

func (e *edit) find(name string) int { return e.after.find(name) }

func (c Chain) find(name string) int {
	return slices.IndexFunc(c.Members, func(m Member) bool { return m.Name == name })
}

// touch marks a member as changed, and returns it for more.
func (e *edit) touch(i int) *Member {
	e.changed = true
	e.after.Members[i].Generation = e.generation
	return &e.after.Members[i]
}

// generationBefore is the one that the member had before the transaction, or has
// if it came with it.
func (e *edit) generationBefore(m Member) uint64 {
	if i := e.before.find(m.Name); i >= 0 {
		return e.before.Members[i].Generation
	}
	return m.Generation
}

func (e *edit) newID() uint32 {
	e.after.NextID++
	return e.after.NextID - 1
}

// Lock tells what the chain is once nothing may be attached to its hook. It must
// be empty: ErrShared.
func (c Chain) Lock() (Chain, error) {
	if len(c.Members) > 0 {
		return c, &Error{Op: "lock", Err: ErrShared, Detail: c.list(), Hint: "take them out first", Rival: &c.Members[0]}
	}
	if !c.Locked {
		c.Locked = true
		c.Generation++
	}
	return c, nil
}

// Unlock is the other way round: ErrInvalid where the chain is not locked.
func (c Chain) Unlock() (Chain, error) {
	if !c.Locked {
		return c, &Error{Op: "unlock", Err: ErrInvalid, Detail: "it is not locked", Hint: "there is nothing to do"}
	}
	c.Locked = false
	c.Generation++
	return c, nil
}

// list names the members for a message.
func (c Chain) list() string {
	if len(c.Members) == 0 {
		return "the chain is empty"
	}
	var s []string
	for _, m := range c.Members {
		s = append(s, fmt.Sprintf("%q at %d", m.Name, m.Priority))
	}
	return "the chain has " + strings.Join(s, ", ")
}

// maxName is how long a name may be, in bytes.
const maxName = 64

func checkName(c Change) error {
	switch {
	case c.Name == "":
		return c.fail(ErrInvalid, "it has no name", "give it one")
	case len(c.Name) > maxName:
		return c.fail(ErrInvalid, fmt.Sprintf("the name has more than %d bytes", maxName), "choose a shorter one")
	case !utf8.ValidString(c.Name):
		return c.fail(ErrInvalid, "the name is not valid UTF-8", "choose another")
	}
	for _, r := range c.Name {
		if !unicode.IsPrint(r) {
			return c.fail(ErrInvalid, fmt.Sprintf("%q in its name can't be printed", r), "choose another")
		}
	}
	return nil
}
