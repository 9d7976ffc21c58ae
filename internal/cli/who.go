package cli

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// whoFlags say what `holdfast who` is asked about: at most one of them.
type whoFlags struct {
	pid int
	id  uint32
	pin string
}

func (a *app) whoCommand() *cobra.Command {
	var f whoFlags
	c := &cobra.Command{
		Use:   "who [IF]",
		Short: "Show who holds which XDP program on this machine",
		Long: `Show every XDP program of this machine, in all network namespaces that can be
found, whoever attached it: how it is held, by which processes, pins, chains or
nobody, since when, and what would happen if you attached, replaced or detached
there. Programs that are attached nowhere, and links that attach nothing any more,
are told as well.

With an interface, or one of the flags, it tells of that alone, and says for each
change what comes of it, whom to ask and what to run.

It changes nothing, and keeps nothing alive for longer than it takes to read it.
Root sees all; others see what is attached, and not who holds it.`,
		Example: `  holdfast who
  holdfast who eth0
  holdfast who --pid 4711
  holdfast who --id 42 -o json
  holdfast who --pin /sys/fs/bpf/filter`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%q is one argument too many", args[1])
			}
			return nil
		},
		ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			asked := len(args)
			for _, name := range []string{"pid", "id", "pin"} {
				if c.Flags().Changed(name) {
					asked++
				}
			}
			switch {
			case asked > 1:
				return usagef("an interface, --pid, --id and --pin are each a question: ask one")
			case c.Flags().Changed("pid") && f.pid <= 0, c.Flags().Changed("id") && f.id == 0:
				return usagef("ids of processes and programs begin with 1")
			}
			iface := ""
			if len(args) > 0 {
				iface = args[0]
			}
			return a.who(c.Context(), iface, f, asked > 0)
		},
	}
	c.Flags().IntVar(&f.pid, "pid", 0, "tell what this process keeps")
	c.Flags().Uint32Var(&f.id, "id", 0, "tell of the program of this id")
	c.Flags().StringVar(&f.pin, "pin", "", "tell of what is pinned at this path")
	return c
}

func (a *app) who(ctx context.Context, iface string, f whoFlags, one bool) error {
	var o inspect.Options
	if iface != "" {
		if err := xdp.CheckName(iface); err != nil {
			return usagef("%s", err)
		}
		o.Interfaces = []string{iface}
	}
	is, err := f.filter(iface)
	if err != nil {
		return err
	}
	report, err := inspect.Look(o)
	if err != nil {
		return err
	}
	all := a.withOwners(ctx, report)
	if is != nil {
		all = slices.DeleteFunc(all, func(w whoFinding) bool { return !is(w) })
	}
	if len(all) == 0 && one {
		if err := f.nothing(iface); err != nil {
			return err
		}
	}
	for _, l := range report.Limits {
		a.log.Warn("not all can be seen", "why", l)
	}
	return a.printWho(whoResult{all, report.Limits}, one)
}

// filter is what the findings that are asked for have in common, nil where all are.
func (f whoFlags) filter(iface string) (func(whoFinding) bool, error) {
	switch {
	case iface != "":
		return func(w whoFinding) bool { return w.Interface == iface }, nil
	case f.pid != 0:
		return func(w whoFinding) bool { return w.OfProcess(f.pid) || w.ownedBy(f.pid) }, nil
	case f.id != 0:
		return func(w whoFinding) bool { return w.OfProgram(f.id) || w.hasMember(f.id) }, nil
	case f.pin != "":
		link, program, err := inspect.Pinned(f.pin)
		if err != nil {
			return nil, err
		}
		return func(w whoFinding) bool {
			return link != 0 && (w.OfLink(link) || w.hasMemberLink(link)) || program != 0 && w.OfProgram(program)
		}, nil
	}
	return nil, nil
}

// nothing says why nothing was found. It is no error that a process holds nothing.
func (f whoFlags) nothing(iface string) error {
	e := &xdp.Error{Op: "look for", Err: xdp.ErrNotFound}
	switch {
	case iface != "":
		e.Op, e.Hook = "find interface", iface
		e.Detail, e.Hint = "no network namespace that can be found has such an interface", "`ip link` lists the interfaces"
	case f.id != 0:
		e.Hook = fmt.Sprintf("program %d", f.id)
		e.Detail, e.Hint = "there is no XDP program of that id", "`holdfast who` lists those that there are"
	case f.pid != 0:
		if _, err := procfs.ReadProcess(f.pid); err == nil {
			return nil
		}
		e.Hook, e.Detail = fmt.Sprintf("process %d", f.pid), "no process has that pid"
	default:
		return nil
	}
	return e
}

// whoResult is what is printed.
type whoResult struct {
	Findings []whoFinding `json:"findings"`
	Limits   []string     `json:"limits,omitempty"`
}

// whoFinding is a finding with what Holdfast knows of it.
type whoFinding struct {
	inspect.Finding
	// Name, Owner and the others are empty where Holdfast did not attach it.
	Name     string           `json:"name,omitempty"`
	Owner    *arbiter.Owner   `json:"owner,omitempty"`
	Lifetime arbiter.Lifetime `json:"lifetime,omitempty"`
	Entry    string           `json:"entry,omitempty"`
	Chain    chainView        `json:"chain,omitempty"`
}

func (w whoFinding) owned() (ownedChain, bool) {
	c, ok := w.Chain.(ownedChain)
	return c, ok
}

// ownedBy tells whether the process holds a member that Holdfast keeps for it.
func (w whoFinding) ownedBy(pid int) bool {
	c, ok := w.owned()
	return ok && slices.ContainsFunc(c.Members, func(m ownedMember) bool {
		return m.Lifetime == arbiter.Held && !m.Ended && m.Owner.PID == pid
	})
}

func (w whoFinding) hasMember(id uint32) bool {
	c, ok := w.owned()
	return ok && slices.ContainsFunc(c.Members, func(m ownedMember) bool { return m.Program.ID == id })
}

func (w whoFinding) hasMemberLink(id uint32) bool {
	c, ok := w.owned()
	return ok && slices.ContainsFunc(c.Members, func(m ownedMember) bool { return m.LinkID == id })
}

// withOwners adds what Holdfast knows, from the daemon or from its state. That it
// can't be had is no reason to tell nothing.
func (a *app) withOwners(ctx context.Context, report *inspect.Report) []whoFinding {
	all := make([]whoFinding, len(report.Findings))
	for i, f := range report.Findings {
		all[i].Finding = f
	}
	known, err := a.known(ctx, report.Findings)
	if err != nil {
		a.log.Warn("what Holdfast knows of its own attachments is left out", "error", err)
	}
	for i := range all {
		for _, s := range known {
			if s.Entry != "" && all[i].is(s) {
				all[i].describe(s, report)
			}
		}
	}
	return all
}

// known is what Holdfast has attached, in the namespaces of the findings.
func (a *app) known(ctx context.Context, findings []inspect.Finding) ([]arbiter.Status, error) {
	state, err := a.look(ctx)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	var namespaces []*xdp.Namespace
	defer func() {
		for _, ns := range namespaces {
			ns.Close()
		}
	}()
	seen := map[string]bool{}
	for _, f := range findings {
		if f.NamespaceID == "" || seen[f.NamespaceID] {
			continue
		}
		seen[f.NamespaceID] = true
		// One that has ended since has nothing attached.
		if ns, err := xdp.OpenNamespace(f.Namespace); err == nil {
			namespaces = append(namespaces, ns)
		}
	}
	if own, ok := state.(*arbiter.Arbiter); ok {
		return own.Own(namespaces)
	}
	return state.Status(namespaces)
}

// is tells whether that is what Holdfast tells of.
func (w *whoFinding) is(s arbiter.Status) bool {
	if s.Lifetime == arbiter.Defunct {
		return w.LinkID != 0 && w.LinkID == s.LinkID
	}
	return w.NamespaceID == s.NamespaceID && w.Index == s.Index && w.Mode == s.Mode && w.Program.ID == s.Program.ID
}

func (w *whoFinding) describe(s arbiter.Status, report *inspect.Report) {
	w.Name, w.Owner, w.Lifetime, w.Entry = s.Name, s.Owner, s.Lifetime, s.Entry
	if !s.Since.IsZero() {
		w.Since, w.SinceLoad = s.Since, s.SinceLoad
	}
	if s.Lifetime == arbiter.Defunct {
		w.Notes = defunctNotes(s, report)
		return
	}
	own := inspect.Own{Name: s.Name}
	if s.Owner != nil {
		own.Owner = ownerText(*s.Owner)
	}
	if s.Chain != nil {
		c := newOwnedChain(s.Chain)
		w.Chain = c
		own.Chain, own.Exclusive, own.Locked = true, c.Exclusive, c.Locked
		for _, m := range c.Members {
			if !m.Ended {
				own.Members = append(own.Members, m.Name)
			}
		}
	}
	w.SetOwn(own)
}

// entryName is a directory of Holdfast's state: a namespace, and an interface there.
var entryName = regexp.MustCompile(`^([ci]\d+)-(\d+)(?:-offload)?$`)

// defunctNotes tell how a link of Holdfast's has ended, from where it was.
func defunctNotes(s arbiter.Status, report *inspect.Report) []string {
	m := entryName.FindStringSubmatch(s.Entry)
	if m == nil {
		return []string{fmt.Sprintf("it was attached to %s, and attaches nothing any more", s.Interface)}
	}
	index, _ := strconv.Atoi(m[2])
	if name, ok := report.Interface(m[1], index); ok {
		return []string{fmt.Sprintf("it was attached to %s, which is still there: another root detached it by force", name)}
	}
	return []string{fmt.Sprintf("it was attached to %s, which is gone", s.Interface)}
}

// printWho prints a table; of one in particular also what would happen.
func (a *app) printWho(r whoResult, one bool) error {
	if a.json() {
		if r.Findings == nil {
			r.Findings = []whoFinding{}
		}
		return a.printJSON("who", r)
	}
	if len(r.Findings) == 0 {
		a.log.Info("there is no such XDP program here")
		return nil
	}
	head := []string{"NETNS", "INTERFACE", "MODE", "PROGRAM", "ID", "HELD", "SINCE", "OPEN TO", "BY"}
	var rows [][]string
	for _, w := range r.Findings {
		rows = append(rows, []string{
			w.namespace(), cmp.Or(w.Interface, w.place()), w.mode(), cmp.Or(w.Program.Name, "-"), w.programID(),
			w.held(), w.since(), w.openTo(), w.by(),
		})
	}
	width := terminalWidth(a.env.Stdout)
	for i, line := range tableLines(head, rows, width) {
		fmt.Fprintln(a.env.Stdout, line)
		if i == 0 {
			continue
		}
		w := r.Findings[i-1]
		for _, below := range w.below(width, one) {
			fmt.Fprintln(a.env.Stdout, strings.Map(printable, below))
		}
	}
	return nil
}

func (w whoFinding) namespace() string {
	switch {
	case w.Namespace == "" && len(w.Namespaces) > 0:
		return w.Namespaces[0]
	case strings.HasPrefix(w.Namespace, "/proc/") && len(w.Namespaces) > 0 && !strings.Contains(w.Namespaces[0], "/"):
		return "pid " + w.Namespaces[0]
	}
	return cmp.Or(w.Namespace, "-")
}

// place stands for an interface's name.
func (w whoFinding) place() string {
	if w.Index != 0 {
		return fmt.Sprintf("%d", w.Index)
	}
	return "-"
}

func (w whoFinding) mode() string {
	if w.Interface == "" || w.Program.ID == 0 {
		return "-"
	}
	return w.Mode.String()
}

func (w whoFinding) programID() string {
	if w.Program.ID == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(w.Program.ID), 10)
}

// held says how, and by which link.
func (w whoFinding) held() string {
	var how []string
	for _, h := range w.How {
		how = append(how, string(h))
	}
	s := strings.Join(how, ", ")
	if w.LinkID != 0 {
		s += fmt.Sprintf(" (link %d)", w.LinkID)
	}
	return s
}

func (w whoFinding) since() string {
	return since(arbiter.Status{Since: w.Since, SinceLoad: w.SinceLoad})
}

// openTo is what would succeed.
func (w whoFinding) openTo() string {
	if w.Would == nil {
		return "-"
	}
	var can []string
	for _, c := range w.changes() {
		if c.answer.OK {
			can = append(can, c.name)
		}
	}
	return cmp.Or(strings.Join(can, ", "), "nothing")
}

type whoChange struct {
	name   string
	answer inspect.Answer
}

func (w whoFinding) changes() []whoChange {
	return []whoChange{
		{"attach", w.Would.Own}, {"attach shared", w.Would.Share},
		{"replace", w.Would.Replace}, {"detach", w.Would.Detach},
	}
}

// by is who holds it; Holdfast's owner first.
func (w whoFinding) by() string {
	var who []string
	if w.Chain != nil && w.Chain.String() != "" {
		who = append(who, w.Chain.String())
	}
	if c, ok := w.owned(); w.Owner != nil && (!ok || c.alone() && !c.Locked) {
		owner := ownerText(*w.Owner)
		if ok && len(c.Members) == 1 && c.Members[0].Lifetime == arbiter.Held {
			owner += fmt.Sprintf("[%d]", c.Members[0].Owner.PID)
		}
		who = append(who, owner+" "+strconv.Quote(w.Name))
	}
	who = append(who, keeperNames(w.By, w.Entry)...)
	for _, c := range w.Candidates {
		who = append(who, fmt.Sprintf("link %d: %s", c.LinkID, cmp.Or(strings.Join(keeperNames(c.By, ""), ", "), "nobody")))
	}
	return cmp.Or(strings.Join(who, ", "), "-")
}

// keeperNames leaves out the pin in an entry of Holdfast's state: who asked for that
// is named.
func keeperNames(k inspect.Keepers, entry string) []string {
	var who []string
	for _, p := range k.Processes {
		who = append(who, processName(p))
	}
	for _, p := range k.Pins {
		switch {
		case entry != "" && strings.HasSuffix(p.Path, entry+"/link"):
		case p.PID != 0:
			who = append(who, fmt.Sprintf("%s (as %s[%d] sees it)", p.Path, p.Comm, p.PID))
		default:
			who = append(who, p.Path)
		}
	}
	for _, s := range k.Sockets {
		who = append(who, fmt.Sprintf("under way to %s, socket %d", processName(s.Process), s.Inode))
	}
	return who
}

func processName(p inspect.Process) string {
	s := fmt.Sprintf("%s[%d]", p.Comm, p.PID)
	switch {
	case p.Container != "":
		s += " in container " + p.Container[:min(12, len(p.Container))]
	case p.Unit != "":
		s += " of " + p.Unit
	}
	return s
}

// below are the lines below a finding: members, notes and, of one in particular,
// what would happen.
func (w whoFinding) below(width int, one bool) []string {
	var lines []string
	if w.Chain != nil {
		lines = w.Chain.lines(width)
	} else if len(w.Members) > 0 {
		var rows [][]string
		for i, m := range w.Members {
			var how []string
			for _, h := range m.How {
				how = append(how, string(h))
			}
			rows = append(rows, []string{
				fmt.Sprintf("%d.", i+1), m.Program.Name, fmt.Sprintf("program %d", m.Program.ID),
				fmt.Sprintf("%s (link %d)", strings.Join(how, ", "), m.LinkID),
				cmp.Or(strings.Join(keeperNames(m.By, ""), ", "), "-"),
			})
		}
		lines = indented(rows, width)
	}
	for _, n := range w.Notes {
		lines = append(lines, indent+"note: "+n)
	}
	if !one {
		return lines
	}
	if open := keeperNames(w.Open, ""); len(open) > 0 && w.Interface != "" {
		lines = append(lines, indent+"the program is open in: "+strings.Join(open, ", "))
	}
	if w.Would == nil {
		return lines
	}
	return append(lines, answerLines(w.changes())...)
}

// answerLines say what would come of each change; those with the same answer are
// told together.
func answerLines(changes []whoChange) []string {
	var lines []string
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && sameAnswer(changes[0].answer, changes[n].answer) {
			n++
		}
		var names []string
		for _, c := range changes[:n] {
			names = append(names, c.name)
		}
		a := changes[0].answer
		verdict := "succeeds"
		if !a.OK {
			verdict = "refused: " + a.Why
		}
		lines = append(lines, indent+strings.Join(names, ", ")+": "+verdict)
		const deeper = indent + indent
		if len(a.Ask) > 0 {
			lines = append(lines, deeper+"ask "+strings.Join(a.Ask, ", "))
		}
		for _, c := range changes[:n] {
			if c.answer.Command == "" {
				continue
			}
			line := deeper + "to " + c.name + ": " + c.answer.Command
			if c.answer.Note != "" {
				line += "  (" + c.answer.Note + ")"
			}
			lines = append(lines, line)
		}
		changes = changes[n:]
	}
	return lines
}

func sameAnswer(a, b inspect.Answer) bool {
	return a.OK == b.OK && a.Why == b.Why && slices.Equal(a.Ask, b.Ask)
}
