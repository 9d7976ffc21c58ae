package owned

import (
	"fmt"
	"slices"
	"strings"
)

// Diff is what a transaction changes, member by member, in the order of the
// chain; those that are taken out stand where they were.
type Diff struct {
	Lines []Line `json:"lines"`
}

// Line is one member in a Diff: Before is nil for one that is new, After for one
// that is taken out.
type Line struct {
	Before *Member `json:"before,omitempty"`
	After  *Member `json:"after,omitempty"`
	// Replaced tells that its program is another.
	Replaced bool `json:"replaced,omitempty"`
	// Moved tells that it runs at another place among those that stay.
	Moved bool `json:"moved,omitempty"`
}

// Same tells whether nothing about the member changes.
func (l Line) Same() bool {
	return l.Before != nil && l.After != nil && !l.Replaced && !l.Moved &&
		l.Before.Priority == l.After.Priority && l.Before.ProceedOn == l.After.ProceedOn
}

// Empty tells whether nothing changes.
func (d Diff) Empty() bool {
	return !slices.ContainsFunc(d.Lines, func(l Line) bool { return !l.Same() })
}

// diff compares two states of a chain. A member is the same one by its name, and
// replaced where its version is another.
func diff(before, after Chain) Diff {
	moved := movers(before, after)
	var d Diff
	old := before.Members
	// What is taken out is told before the first that stays of those behind it.
	flush := func(until string) {
		for len(old) > 0 && old[0].Name != until {
			if m := old[0]; after.find(m.Name) < 0 {
				d.Lines = append(d.Lines, Line{Before: &m})
			}
			old = old[1:]
		}
	}
	for _, m := range after.Members {
		l := Line{After: &m}
		if i := before.find(m.Name); i >= 0 {
			if !moved[m.Name] {
				flush(m.Name)
			}
			l.Before = &before.Members[i]
			l.Replaced, l.Moved = l.Before.ID != m.ID, moved[m.Name]
		}
		d.Lines = append(d.Lines, l)
	}
	flush("")
	return d
}

// movers are the members that run at another place among those that are in both
// chains: as few as tell the two orders apart.
func movers(before, after Chain) map[string]bool {
	var places []int // in before, of those that stay, in the order of after
	var names []string
	for _, m := range after.Members {
		if i := before.find(m.Name); i >= 0 {
			places, names = append(places, i), append(names, m.Name)
		}
	}
	// The longest run of places that only rises stays; length and previous are
	// of the longest that ends there.
	length, previous := make([]int, len(places)), make([]int, len(places))
	last := -1
	for i := range places {
		length[i], previous[i] = 1, -1
		for j := range i {
			if places[j] < places[i] && length[j] >= length[i] {
				length[i], previous[i] = length[j]+1, j
			}
		}
		if last < 0 || length[i] > length[last] {
			last = i
		}
	}
	moved := map[string]bool{}
	for _, name := range names {
		moved[name] = true
	}
	for ; last >= 0; last = previous[last] {
		delete(moved, names[last])
	}
	return moved
}

// String shows the chain with what changes marked, as diff does: - before, +
// after.
func (d Diff) String() string {
	var b strings.Builder
	for _, l := range d.Lines {
		if l.Same() {
			fmt.Fprintf(&b, "  %s\n", describe(*l.Before))
			continue
		}
		if l.Before != nil {
			fmt.Fprintf(&b, "- %s\n", describe(*l.Before))
		}
		if l.After != nil {
			fmt.Fprintf(&b, "+ %s", describe(*l.After))
			if l.Replaced {
				b.WriteString(", another program")
			}
			if l.Moved {
				b.WriteString(", at another place")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func describe(m Member) string {
	actions := m.ProceedOn.String()
	if actions == "" {
		actions = "nothing"
	}
	s := fmt.Sprintf("%s: priority %d, goes on after %s", m.Name, m.Priority, actions)
	if m.Lifetime == Held {
		s += ", held"
	}
	return s
}
