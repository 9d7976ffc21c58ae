package enginetest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// where is what an answer may depend on.
type where struct {
	kernel   string // its name in the matrix, or kerneltest.Host
	freplace bool
}

// limit is a row of testdata/limits.md: what engines can't do on kernels, and
// what the user is told.
type limit struct {
	behaviour string
	engines   []string
	kernels   []string
	told      string
}

// What stands for more than a name in the table.
const (
	anything        = "anything"
	allKernels      = "all"
	withoutFreplace = "without freplace"
)

type limits []limit

// readLimits reads the table that the documents have, too. Every row must be
// about something that the tests know.
func readLimits(t *testing.T) limits {
	t.Helper()
	text, err := os.ReadFile("testdata/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	var all limits
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[2:] {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 4 {
			t.Fatalf("the table's line %q has not four cells", line)
		}
		all = append(all, limit{cells[0], strings.Split(cells[1], ", "), strings.Split(cells[2], ", "), strings.Trim(cells[3], "`")})
	}
	for _, l := range all {
		known := l.behaviour == anything
		for _, b := range behaviours {
			known = known || b.name == l.behaviour
		}
		if !known {
			t.Errorf("testdata/limits.md: no behaviour is called %q", l.behaviour)
		}
		for _, name := range l.engines {
			if !slices.ContainsFunc(engines, func(e engine) bool { return e.name == name }) {
				t.Errorf("testdata/limits.md: no engine is called %q", name)
			}
		}
	}
	return all
}

// find is what the engine may answer where it can't do that. It is sure if it
// can't: what a kernel can do that has no name in the table is not known.
func (all limits) find(behaviour string, e engine, w where) (told []string, sure bool) {
	for _, l := range all {
		if !slices.Contains(l.engines, e.name) || l.behaviour != behaviour && l.behaviour != anything {
			continue
		}
		has := func(kernel string) bool { return slices.Contains(l.kernels, kernel) }
		switch {
		case has(allKernels), has(w.kernel), has(withoutFreplace) && !w.freplace:
			told, sure = append(told, l.told), true
		case w.kernel == kerneltest.Host && !has(withoutFreplace):
			told = append(told, l.told)
		}
	}
	return told, sure
}

// judge fails the test unless what the engine said is what the table has.
func (all limits) judge(t *testing.T, behaviour string, e engine, w where, err error) {
	t.Helper()
	told, sure := all.find(behaviour, e, w)
	said := func(words string) bool { return err != nil && strings.Contains(err.Error(), words) }
	switch {
	case err == nil && sure:
		t.Errorf("it can be done, and testdata/limits.md says that the answer is: %s", told[0])
	case err != nil && !slices.ContainsFunc(told, said):
		t.Errorf("%v\ntestdata/limits.md has: %q", err, told)
	}
}
