package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// hookStatus is an attachment, with its chain where it has one.
type hookStatus struct {
	arbiter.Status
	Chain chainView `json:"chain,omitempty"`
}

// chainView is a chain as it is printed: that of a shared hook, or of an owned
// one.
type chainView interface {
	// String is the chain without its members.
	String() string
	// lines are the members below their hook, for a terminal of that width.
	lines(width int) []string
}

// newHook is the attachment with the chain of an owned hook.
func newHook(s arbiter.Status) hookStatus {
	h := hookStatus{Status: s}
	if s.Chain != nil {
		h.Chain = newOwnedChain(s.Chain)
	}
	return h
}

// ownedChain is the chain of an owned hook as it is printed.
type ownedChain struct {
	*arbiter.ChainStatus
	Members []ownedMember `json:"members"`
}

type ownedMember struct {
	arbiter.MemberStatus
	ProceedOn []string `json:"proceed_on"`
}

func newOwnedChain(c *arbiter.ChainStatus) ownedChain {
	all := ownedChain{c, []ownedMember{}}
	for _, m := range c.Members {
		all.Members = append(all.Members, newOwnedMember(m))
	}
	return all
}

func newOwnedMember(m arbiter.MemberStatus) ownedMember {
	return ownedMember{m, actionNames(m.ProceedOn)}
}

func actionNames(set chain.Actions) []string {
	names := []string{}
	for _, action := range chain.AllActions() {
		if set.Has(action) {
			names = append(names, action.String())
		}
	}
	return names
}

// alone tells whether the hook runs one program as itself, so that its own line
// says all of it.
func (c ownedChain) alone() bool { return c.Engine == arbiter.Single }

func (c ownedChain) String() string {
	switch {
	case c.Locked:
		return "locked"
	case c.Exclusive && c.Stats:
		return "exclusive, counting"
	case c.Exclusive:
		return "exclusive"
	case c.alone():
		return ""
	case c.Stats:
		return engineText(c.Engine, len(c.Members)) + ", counting"
	}
	return engineText(c.Engine, len(c.Members))
}

func (c ownedChain) lines(width int) []string {
	if c.alone() {
		return nil
	}
	var rows [][]string
	for i, m := range c.Members {
		program := "fused"
		if m.Program.ID != 0 {
			program = fmt.Sprintf("program %d", m.Program.ID)
		}
		rows = append(rows, []string{
			fmt.Sprintf("%d.", i+1), m.Name, program, fmt.Sprintf("priority %d", m.Priority), goesOn(m.ProceedOn),
			m.lifetime(), "since " + m.Since.Local().Format(time.DateTime), ownerText(m.Owner),
		})
	}
	return indented(rows, width)
}

// lifetime says when the member ends.
func (m ownedMember) lifetime() string {
	switch {
	case m.Ended:
		return "ended"
	case m.Lifetime == arbiter.Held:
		return fmt.Sprintf("held by process %d", m.Owner.PID)
	}
	return string(m.Lifetime)
}

// chainStatus is the chain of a shared hook as it is printed.
type chainStatus struct {
	// Engine is libxdp: a chain that its tools share.
	Engine string `json:"engine"`
	// Version is the dispatcher's, and MadeBy who built it: holdfast or libxdp.
	Version     int    `json:"version"`
	MadeBy      string `json:"made_by,omitempty"`
	Frags       bool   `json:"frags"`
	DeviceBound bool   `json:"device_bound"`
	// Members are in the order that they run in.
	Members []memberStatus `json:"members"`
	Problem string         `json:"problem,omitempty"`
}

type memberStatus struct {
	Slot      int         `json:"slot"`
	Name      string      `json:"name"`
	Priority  uint32      `json:"priority"`
	ProceedOn []string    `json:"proceed_on"`
	Program   xdp.Program `json:"program"`
}

func newChainStatus(c *libxdp.Chain) *chainStatus {
	return &chainStatus{
		Engine: "libxdp", Version: c.Version, MadeBy: c.MadeBy, Frags: c.Frags, DeviceBound: c.DeviceBound,
		Members: newMembers(c.Members), Problem: c.Problem,
	}
}

func newMembers(members []libxdp.Member) []memberStatus {
	all := make([]memberStatus, 0, len(members))
	for _, m := range members {
		all = append(all, memberStatus{Slot: m.Slot, Name: m.Name, Priority: m.Priority, ProceedOn: actionNames(m.ProceedOn), Program: m.Program})
	}
	return all
}

// printChain says what was done at the hook, and which chain is there now.
func (a *app) printChain(h *xdp.Hook, c *libxdp.Chain, done string) error {
	state, err := a.look(context.Background())
	if err != nil {
		return err
	}
	defer state.Close()
	s, err := state.At(h)
	if err != nil {
		return err
	}
	if s == nil || s.Program.ID != c.Dispatcher.ID {
		// Others have changed it since; what this command did is told all the
		// same.
		s = &arbiter.Status{
			Namespace: h.Namespace().Spec(), NamespaceID: h.Namespace().ID(), Interface: h.Name(), Index: h.Index(),
			Attachment: xdp.Attachment{Mode: c.Mode, Program: c.Dispatcher, Held: xdp.HeldByNetlink},
			Since:      c.Dispatcher.LoadedAt, SinceLoad: true, Lifetime: arbiter.Permanent,
		}
	}
	return a.printHook(hookStatus{*s, newChainStatus(c)}, done)
}

func (a *app) printHook(s hookStatus, done string) error {
	if a.json() {
		return a.printJSON("attachment", s)
	}
	var err error
	switch c := s.Chain.(type) {
	case nil:
		return a.printAttachment(&s.Status, done)
	case ownedChain:
		if c.String() == "" {
			return a.printAttachment(&s.Status, done)
		}
		_, err = fmt.Fprintf(a.env.Stdout, "%s %s: %s, program %d %q, mode %s, %s, %s\n",
			done, s.Interface, c, s.Program.ID, s.Program.Name, s.Mode, heldText(&s.Status), s.Lifetime)
	default:
		_, err = fmt.Fprintf(a.env.Stdout, "%s %s: %s, mode %s, dispatcher %d, %s, %s\n",
			done, s.Interface, c, s.Mode, s.Program.ID, heldText(&s.Status), s.Lifetime)
	}
	a.printMembers(s.Chain)
	return err
}

// printDetachedMembers says which members are gone, and what is left; nil for
// nothing.
func (a *app) printDetachedMembers(h *xdp.Hook, gone []libxdp.Member, left *libxdp.Chain) error {
	var rest chainView
	if isChain(left) {
		rest = newChainStatus(left)
	}
	return printWithout(a, h.Namespace().Spec(), h.Name(), h.Index(), newMembers(gone), rest)
}

// goneMember is a member that was taken out, of either kind of chain.
type goneMember interface {
	memberStatus | ownedMember
	was() (name string, program uint32)
}

func (m memberStatus) was() (name string, program uint32) { return m.Name, m.Program.ID }
func (m ownedMember) was() (name string, program uint32)  { return m.Name, m.Program.ID }

func printWithout[M goneMember](a *app, namespace, name string, index int, gone []M, rest chainView) error {
	if a.json() {
		result := map[string]any{"netns": namespace, "interface": name, "ifindex": index, "members": gone}
		if rest != nil {
			result["chain"] = rest
		}
		return a.printJSON("detached", result)
	}
	var names []string
	for _, m := range gone {
		name, program := m.was()
		if program != 0 {
			name += fmt.Sprintf(" (program %d)", program)
		}
		names = append(names, name)
	}
	what := ""
	if len(names) > 0 {
		what = ": " + strings.Join(names, ", ")
	}
	if rest == nil {
		_, err := fmt.Fprintf(a.env.Stdout, "detached %s%s\n", name, what)
		return err
	}
	_, err := fmt.Fprintf(a.env.Stdout, "detached from %s%s; left is %s\n", name, what, leftText(rest))
	a.printMembers(rest)
	return err
}

// String is the chain without its members.
func (c *chainStatus) String() string {
	var b strings.Builder
	switch n := len(c.Members); {
	case n == 0 && c.Problem != "":
		b.WriteString("a chain")
	case n == 1:
		b.WriteString("a chain of 1 member")
	default:
		fmt.Fprintf(&b, "a chain of %d members", n)
	}
	switch c.MadeBy {
	case libxdp.MadeByHoldfast:
		b.WriteString(", by Holdfast")
	case libxdp.MadeByOther:
		b.WriteString(", by libxdp")
	}
	return b.String()
}

// leftText names what is left.
func leftText(c chainView) string {
	if o, ok := c.(ownedChain); ok && o.alone() && len(o.Members) == 1 {
		return fmt.Sprintf("%s (program %d)", o.Members[0].Name, o.Members[0].Program.ID)
	}
	return c.String()
}

// printMembers prints the members below their hook.
func (a *app) printMembers(c chainView) {
	for _, line := range c.lines(terminalWidth(a.env.Stdout)) {
		fmt.Fprintln(a.env.Stdout, line)
	}
}

// lines are the members in their order, and what is wrong with the chain.
func (c *chainStatus) lines(width int) []string {
	var rows [][]string
	for i, m := range c.Members {
		rows = append(rows, []string{
			fmt.Sprintf("%d.", i+1), m.Name, fmt.Sprintf("program %d", m.Program.ID), fmt.Sprintf("priority %d", m.Priority), goesOn(m.ProceedOn),
		})
	}
	lines := indented(rows, width)
	if c.Problem != "" {
		lines = append(lines, indent+"problem: "+strings.Map(printable, c.Problem))
	}
	return lines
}

func goesOn(actions []string) string {
	if len(actions) == 0 {
		return "ends the chain"
	}
	return "goes on after " + strings.Join(actions, ",")
}

const indent = "  "

// indented are the rows in columns, below another table.
func indented(rows [][]string, width int) []string {
	lines := tableLines(nil, rows, max(width-len(indent), min(width, 1)))
	for i := range lines {
		lines[i] = indent + lines[i]
	}
	return lines
}
