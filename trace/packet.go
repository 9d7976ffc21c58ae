package trace

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-bpf/holdfast/chain"
)

// Member is a program of the chain that is traced.
type Member struct {
	Name string
	// ProgramID is the member's own program, and 0 where it is a part of the one
	// that is attached.
	ProgramID uint32
	// ProceedOn are the actions after which the chain goes on.
	ProceedOn chain.Actions
}

// Verdict is what a program returned: an action, or any other number.
type Verdict uint32

// String is the action's name.
func (v Verdict) String() string {
	if v <= Verdict(chain.Redirect) {
		return chain.Action(v).String()
	}
	return fmt.Sprintf("%#x (no action)", uint32(v))
}

// MarshalText writes the action's name, for JSON.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Step is a member that a packet met, by its place in [Options].Members, and what
// it returned.
type Step struct {
	Member   int
	Returned Verdict
}

// Packet is a packet that went through the chain.
type Packet struct {
	// Time is when it came.
	Time time.Time
	// Data are its first bytes, as they came in, and Length is how many there
	// were. Of a packet of several buffers they are those of the first.
	Data   []byte
	Length int
	// Met are the members that it met and that could be watched, in order.
	Met []Step
	// Verdict is what the chain returned.
	Verdict Verdict
	// Enders are the members that the chain can have ended with: one where it is
	// known which; none where all went on; several where not all could be
	// watched.
	Enders []int
	// Through tells that the packet may have met all members, and been passed
	// because each went on.
	Through bool
}

// judge finds out who ended the chain. Members that are not seen are in no step.
func (p *Packet) judge(members []Member, seen []bool) {
	last, went := -1, true
	if n := len(p.Met); n > 0 {
		s := p.Met[n-1]
		last, went = s.Member, goesOn(members[s.Member], s.Returned)
	}
	p.Enders, p.Through = nil, false
	if !went {
		p.Enders = []int{last}
		return
	}
	for i := last + 1; i < len(members); i++ {
		if !seen[i] && !goesOn(members[i], p.Verdict) {
			p.Enders = append(p.Enders, i)
		}
	}
	p.Through = p.Verdict == Verdict(chain.Pass)
	if !p.Through && len(p.Enders) == 0 && last >= 0 && p.Met[len(p.Met)-1].Returned == p.Verdict {
		// Some dispatchers return what the last member does, whatever it is.
		p.Enders = []int{last}
	}
}

func goesOn(m Member, v Verdict) bool {
	return v <= Verdict(chain.Redirect) && m.ProceedOn.Has(chain.Action(v))
}

// past is what happened to a packet with that verdict.
func past(v Verdict) string {
	switch v {
	case Verdict(chain.Pass):
		return "passed"
	case Verdict(chain.Drop):
		return "dropped"
	case Verdict(chain.Tx):
		return "sent back"
	case Verdict(chain.Redirect):
		return "redirected"
	}
	return "dropped as an error (" + v.String() + ")"
}

// Explain says what happened to the packet and by whom, as "dropped by
// ddos-filter, member 2 of 4".
func (p *Packet) Explain(members []Member) string {
	what := past(p.Verdict)
	var names []string
	for _, i := range p.Enders {
		names = append(names, members[i].Name)
	}
	n := len(names)
	switch {
	case n == 0 && p.Through && len(members) > 1:
		return fmt.Sprintf("%s by all %d members", what, len(members))
	case n == 0 && p.Through && len(members) == 1:
		return fmt.Sprintf("%s by %s, the only member", what, members[0].Name)
	case n == 0:
		return what
	case n == 1 && !p.Through && len(members) == 1:
		return fmt.Sprintf("%s by %s, the only member", what, names[0])
	case n == 1 && !p.Through:
		return fmt.Sprintf("%s by %s, member %d of %d", what, names[0], p.Enders[0]+1, len(members))
	case p.Through:
		return fmt.Sprintf("%s by all %d members, or by %s before the last", what, len(members), oneOf(names))
	}
	return fmt.Sprintf("%s by %s", what, oneOf(names))
}

func oneOf(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// Path lists the members that the packet met and what they returned.
func (p *Packet) Path(members []Member) string {
	var b strings.Builder
	for i, s := range p.Met {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d %s %s", s.Member+1, members[s.Member].Name, s.Returned)
	}
	return b.String()
}
