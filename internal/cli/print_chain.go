package cli

import (
	"fmt"
	"strings"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// hookStatus is an attachment, with its chain where it is a dispatcher.
type hookStatus struct {
	arbiter.Status
	Chain *chainStatus `json:"chain,omitempty"`
}

// chainStatus is a chain as it is printed.
type chainStatus struct {
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
		Version: c.Version, MadeBy: c.MadeBy, Frags: c.Frags, DeviceBound: c.DeviceBound,
		Members: newMembers(c.Members), Problem: c.Problem,
	}
}

func newMembers(members []libxdp.Member) []memberStatus {
	all := make([]memberStatus, 0, len(members))
	for _, m := range members {
		actions := []string{}
		for _, action := range chain.AllActions() {
			if m.ProceedOn.Has(action) {
				actions = append(actions, action.String())
			}
		}
		all = append(all, memberStatus{Slot: m.Slot, Name: m.Name, Priority: m.Priority, ProceedOn: actions, Program: m.Program})
	}
	return all
}

// printChain says what was done at the hook, and which chain is there now.
func (a *app) printChain(h *xdp.Hook, c *libxdp.Chain, done string) error {
	state, err := a.look()
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
	_, err := fmt.Fprintf(a.env.Stdout, "%s %s: %s, mode %s, dispatcher %d, shared (netlink), %s\n",
		done, s.Interface, s.Chain, s.Mode, s.Program.ID, s.Lifetime)
	a.printMembers(s.Chain)
	return err
}

// printDetachedMembers says which members are gone, and what is left; nil for
// nothing.
func (a *app) printDetachedMembers(h *xdp.Hook, gone []libxdp.Member, left *libxdp.Chain) error {
	var rest *chainStatus
	if isChain(left) {
		rest = newChainStatus(left)
	}
	return a.printWithout(h.Namespace().Spec(), h.Name(), h.Index(), newMembers(gone), rest)
}

func (a *app) printWithout(namespace, name string, index int, gone []memberStatus, rest *chainStatus) error {
	if a.json() {
		result := map[string]any{"netns": namespace, "interface": name, "ifindex": index, "members": gone}
		if rest != nil {
			result["chain"] = rest
		}
		return a.printJSON("detached", result)
	}
	var names []string
	for _, m := range gone {
		names = append(names, fmt.Sprintf("%s (program %d)", m.Name, m.Program.ID))
	}
	what := ""
	if len(names) > 0 {
		what = ": " + strings.Join(names, ", ")
	}
	if rest == nil {
		_, err := fmt.Fprintf(a.env.Stdout, "detached %s%s\n", name, what)
		return err
	}
	_, err := fmt.Fprintf(a.env.Stdout, "detached from %s%s; left is %s\n", name, what, rest)
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

// printMembers prints the members below their hook.
func (a *app) printMembers(c *chainStatus) {
	for _, line := range memberLines(c, terminalWidth(a.env.Stdout)) {
		fmt.Fprintln(a.env.Stdout, line)
	}
}

// memberLines are the members in their order, and what is wrong with the chain.
func memberLines(c *chainStatus, width int) []string {
	var rows [][]string
	for i, m := range c.Members {
		goes := "ends the chain"
		if len(m.ProceedOn) > 0 {
			goes = "goes on after " + strings.Join(m.ProceedOn, ",")
		}
		rows = append(rows, []string{
			fmt.Sprintf("%d.", i+1), m.Name, fmt.Sprintf("program %d", m.Program.ID), fmt.Sprintf("priority %d", m.Priority), goes,
		})
	}
	const indent = "  "
	lines := tableLines(nil, rows, max(width-len(indent), min(width, 1)))
	if c.Problem != "" {
		lines = append(lines, "problem: "+strings.Map(printable, c.Problem))
	}
	for i := range lines {
		lines[i] = indent + lines[i]
	}
	return lines
}
