package inspect

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/holdfast-bpf/holdfast/xdp"
)

// Would is what would happen to somebody who changed the hook now.
type Would struct {
	// Own is to attach a program that a link holds, Share one by netlink, for all
	// to change.
	Own   Answer `json:"attach"`
	Share Answer `json:"attach_shared"`
	// Replace and Detach are of what is there.
	Replace Answer `json:"replace"`
	Detach  Answer `json:"detach"`
}

const cantTell = "how it is held can't be told without CAP_NET_ADMIN"

// Answer is what would come of a change.
type Answer struct {
	OK bool `json:"ok"`
	// Why is why not, in the words of the refusal.
	Why string `json:"why,omitempty"`
	// Ask is who can make room.
	Ask []string `json:"ask,omitempty"`
	// Command is what to run: OBJ is the object of a new program.
	Command string `json:"command,omitempty"`
	// Note is what to know before.
	Note string `json:"note,omitempty"`
}

// Own is what Holdfast knows of an attachment of its own.
type Own struct {
	// Name is what the attachment is called, Owner who made it, for people.
	Name, Owner string
	// Chain tells that the hook is owned, and has a chain of Members; otherwise it
	// is a shared one with one program.
	Chain     bool
	Members   []string
	Exclusive bool
	Locked    bool
}

// SetOwn says that Holdfast has made the attachment, which changes what would
// happen to who uses Holdfast.
func (f *Finding) SetOwn(own Own) {
	if f.Would != nil {
		f.foresee(&own)
	}
}

// foresee fills in what would happen. own is nil where Holdfast did not attach it.
func (f *Finding) foresee(own *Own) {
	if f.Held == xdp.HeldUnknown {
		unknown := Answer{Why: cantTell}
		f.Would = &Would{unknown, unknown, unknown, unknown}
		return
	}
	f.Would = &Would{
		Own: f.answer(xdp.ToOwn), Share: f.answer(xdp.ToShare),
		Replace: f.answer(xdp.ToReplace), Detach: f.answer(xdp.ToDetach),
	}
	w := f.Would
	id := fmt.Sprint(f.Program.ID)
	switch {
	case f.Program.ID == 0:
		w.Own.Command = f.command("attach", "OBJ")
		w.Share.Command = f.command("attach", "OBJ", "--shared")
	case own != nil && own.Chain:
		f.foreseeOwned(*own)
	case f.How[0] == ByLibxdp:
		w.Own.Command = f.command("detach", "--all")
		w.Own.Note = "the whole chain goes with it; adding to it is to attach shared"
		w.Share = Answer{OK: true, Command: f.command("attach", "OBJ", "--shared"), Note: "the program joins the chain"}
		w.Replace.Command = f.command("replace", "MEMBER", "OBJ")
		w.Detach.Command = f.command("detach", "MEMBER")
	case f.Held == xdp.HeldByLink:
		w.Detach.Command = f.command("detach", "--foreign", "--expect", id)
		w.Detach.Note = "by force, as root: it takes the link away from its holders, who are not told"
	case f.Held == xdp.HeldByNetlink:
		w.Own.Command = f.command("adopt", "OBJ", "--allow-gap")
		w.Own.Note = "with the object of what is there: it is taken off and attached anew by a link"
		w.Share.Command = f.command("attach", "OBJ...", "--shared", "--adopt")
		w.Share.Note = "with the object of what is there among those given: it becomes a member of a chain"
		w.Replace.Command = f.command("attach", "OBJ", "--shared", "--single", "--expect", id)
		w.Detach.Command = f.command("detach", "--foreign", "--expect", id)
		if own != nil {
			w.Replace.Command, w.Detach.Command = f.command("replace", "OBJ"), f.command("detach")
		}
	}
}

// foreseeOwned is for a hook that Holdfast owns: what others are refused it can do.
func (f *Finding) foreseeOwned(own Own) {
	w := f.Would
	owner := []string{own.Owner}
	if own.Owner == "" {
		owner = []string{"the owners of its members"}
	}
	for _, a := range []*Answer{&w.Own, &w.Share, &w.Replace, &w.Detach} {
		a.Ask = owner // the link is Holdfast's
	}
	member := "MEMBER"
	if len(own.Members) == 1 && !strings.HasPrefix(own.Members[0], "-") {
		member = own.Members[0]
	}
	switch {
	case own.Locked:
		w.Own.Why = "the hook is locked"
		w.Own.Command = f.command("unlock")
	case own.Exclusive:
		w.Own.Why = fmt.Sprintf("%q has the hook to itself", member)
		w.Own.Command = f.command("detach", member)
	default:
		w.Own = Answer{OK: true, Command: f.command("attach", "OBJ"), Note: "the program joins the chain"}
	}
	if len(own.Members) == 0 {
		return
	}
	const note = "with Holdfast; everybody else is refused"
	w.Replace = Answer{OK: true, Command: f.command("replace", member, "OBJ"), Note: note}
	w.Detach = Answer{OK: true, Command: f.command("detach", member), Note: note}
}

// answer is what the kernel would say.
func (f *Finding) answer(i xdp.Intent) Answer {
	mode := f.Mode
	if i == xdp.ToOwn || i == xdp.ToShare {
		mode = xdp.Auto // as who does not know what is there would ask
	}
	e := f.state.Foresee(i, mode, f.master)
	if e == nil {
		return Answer{OK: true}
	}
	a := Answer{Why: e.Err.Error()}
	// What is expected there goes without saying.
	if e.Detail != "" && !errors.Is(e, xdp.ErrConflict) {
		a.Why += ": " + e.Detail
	}
	if e.Rival != nil {
		rival := *e.Rival
		if rival.Mode == f.Mode && rival.Program.ID == f.Program.ID {
			rival.LinkID = f.LinkID
			a.Ask = f.holders()
		}
		a.Why += ": " + rival.String()
	}
	if e.Hint != "" {
		a.Why += "; " + e.Hint
	}
	return a
}

// holders are who has the link, or may have it, for people.
func (f *Finding) holders() []string {
	var all []string
	add := func(k Keepers) {
		for _, p := range k.Processes {
			all = append(all, p.String())
		}
		for _, p := range k.Pins {
			all = append(all, p.String())
		}
	}
	add(f.By)
	for _, c := range f.Candidates {
		add(c.By)
	}
	for _, s := range f.By.Sockets {
		all = append(all, fmt.Sprintf("%s, to whose socket %d descriptors are under way", s.Process, s.Inode))
	}
	return all
}

// command is a command of Holdfast's about the finding's interface, and empty where
// the interface's name would be read as an option.
func (f *Finding) command(verb string, args ...string) string {
	if strings.HasPrefix(f.Interface, "-") {
		return ""
	}
	all := append([]string{"holdfast", verb, quote(f.Interface)}, args...)
	for i := 3; i < len(all); i++ {
		all[i] = quote(all[i])
	}
	if f.Namespace != "" {
		all = append(all, "--netns", quote(f.Namespace))
	}
	return strings.Join(all, " ")
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// quote writes a word as a shell reads it.
func quote(s string) string {
	if plain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
