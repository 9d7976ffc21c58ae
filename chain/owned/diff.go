package owned

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-bpf/holdfast/internal/lcs"
)

// Diff is what is different between two states of a chain. The zero value says
// that nothing is.
type Diff struct {
	// Before and After are the two.
	Before Chain `json:"before"`
	After  Chain `json:"after"`
	// Members are those that differ: first those that are gone, then the others
	// in the order that they run in afterwards.
	Members []MemberDiff `json:"members,omitempty"`
}

// What can be different about a member.
const (
	// Added and Removed: it is in one of the two only.
	Added   = "added"
	Removed = "removed"
	// Replaced: it has another program.
	Replaced = "replaced"
	// Moved: it runs before another one that it ran after, or after one that
	// it ran before. Where two have changed places only one is said to.
	Moved = "moved"
	// The others are a member's fields.
	PriorityChanged  = "priority"
	ProceedOnChanged = "proceed_on"
	LifetimeChanged  = "lifetime"
)

// MemberDiff is what is different about one member.
type MemberDiff struct {
	Name string `json:"name"`
	// What has Added, Removed, or all of the others that apply.
	What []string `json:"what"`
	// Before is nil for one that was added, and After for one that was removed.
	Before *Member `json:"before,omitempty"`
	After  *Member `json:"after,omitempty"`
}

func diff(before, after Chain) Diff {
	if before.Generation == after.Generation {
		return Diff{}
	}
	d := Diff{Before: before, After: after}
	for _, m := range before.Members {
		if after.Find(m.Name) < 0 {
			d.Members = append(d.Members, MemberDiff{Name: m.Name, What: []string{Removed}, Before: &m})
		}
	}
	stayed := lcs.Common(names(before.Members), names(after.Members))
	for _, m := range after.Members {
		at := before.Find(m.Name)
		if at < 0 {
			d.Members = append(d.Members, MemberDiff{Name: m.Name, What: []string{Added}, After: &m})
			continue
		}
		was := before.Members[at]
		var what []string
		for _, w := range []struct {
			is   bool
			what string
		}{
			{m.ID != was.ID, Replaced},
			{!slices.Contains(stayed, m.Name), Moved},
			{m.Priority != was.Priority, PriorityChanged},
			{m.ProceedOn != was.ProceedOn, ProceedOnChanged},
			{m.Lifetime != was.Lifetime, LifetimeChanged},
		} {
			if w.is {
				what = append(what, w.what)
			}
		}
		if len(what) > 0 {
			d.Members = append(d.Members, MemberDiff{Name: m.Name, What: what, Before: &was, After: &m})
		}
	}
	return d
}

func names(members []Member) []string {
	var s []string
	for _, m := range members {
		s = append(s, m.Name)
	}
	return s
}

// Empty tells whether nothing is different.
func (d Diff) Empty() bool { return d.Before.Generation == d.After.Generation }

// String shows the whole chain, a line a member, as diff -u does: with a minus
// what is no more, with a plus what is new. A member whose program is replaced
// is both. It is empty if nothing is different.
//
//	--- generation 4
//	+++ generation 5
//	 ddos   priority 10  proceed-on XDP_PASS  permanent  version 1
//	-debug  priority 50  proceed-on XDP_PASS  held       version 3
//	-lb     priority 50  proceed-on XDP_PASS  permanent  version 2
//	+lb     priority 50  proceed-on XDP_PASS  permanent  version 4
func (d Diff) String() string {
	if d.Empty() {
		return ""
	}
	before, after := lines(d.Before, d.After)
	var b strings.Builder
	fmt.Fprintf(&b, "--- generation %d\n+++ generation %d\n", d.Before.Generation, d.After.Generation)
	// Line by line up to each that both have.
	for _, same := range append(lcs.Common(before, after), "") {
		before = writeUntil(&b, "-", before, same)
		after = writeUntil(&b, "+", after, same)
		if same != "" {
			fmt.Fprintf(&b, " %s\n", same)
		}
	}
	return b.String()
}

// writeUntil writes the lines before that one, or all, with a mark before each,
// and returns those after it.
func writeUntil(b *strings.Builder, mark string, lines []string, end string) []string {
	for i, l := range lines {
		if l == end {
			return lines[i+1:]
		}
		fmt.Fprintf(b, "%s%s\n", mark, l)
	}
	return nil
}

// lines are the two chains as text, in columns. No line is empty, or twice in a
// chain.
func lines(before, after Chain) (b, a []string) {
	const columns = 5
	row := func(m Member) [columns]string {
		proceed := m.ProceedOn.String()
		if proceed == "" {
			proceed = "nothing"
		}
		return [columns]string{
			m.Name, fmt.Sprintf("priority %d", m.Priority), "proceed-on " + proceed,
			string(m.Lifetime), fmt.Sprintf("version %d", m.ID),
		}
	}
	var width [columns]int
	for _, m := range slices.Concat(before.Members, after.Members) {
		for i, cell := range row(m) {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	write := func(c Chain) (s []string) {
		if c.Exclusive {
			s = append(s, "exclusive")
		}
		if c.Locked {
			s = append(s, "locked")
		}
		if c.Stats {
			s = append(s, "stats")
		}
		for _, m := range c.Members {
			var line strings.Builder
			for i, cell := range row(m) {
				fmt.Fprintf(&line, "%-*s  ", width[i], cell)
			}
			s = append(s, strings.TrimRight(line.String(), " "))
		}
		return s
	}
	return write(before), write(after)
}
