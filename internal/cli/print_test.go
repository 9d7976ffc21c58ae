package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

var tableHead = []string{"INTERFACE", "MODE", "PROGRAM", "BY"}

var tableRows = [][]string{
	{"eth0", "native", "filter", "uid 0 holdfast, collector[4711]"},
	{"wlp0s20f3", "generic", "a_program_name_", "-"},
	{"größe0", "-", "", "/sys/fs/bpf/a/rather/long/path/of/a/pin"},
	{"eth1", "native", "evil", "\x1b[2J\nroot[1]"},
}

func TestATableFitsTheTerminal(t *testing.T) {
	for width, want := range map[int]string{
		0: `
INTERFACE  MODE     PROGRAM          BY
eth0       native   filter           uid 0 holdfast, collector[4711]
wlp0s20f3  generic  a_program_name_  -
größe0     -                         /sys/fs/bpf/a/rather/long/path/of/a/pin
eth1       native   evil             �[2J�root[1]
`,
		60: `
INTERFACE  MODE     PROGRAM          BY
eth0       native   filter           uid 0 holdfast, collec…
wlp0s20f3  generic  a_program_name_  -
größe0     -                         /sys/fs/bpf/a/rather/l…
eth1       native   evil             �[2J�root[1]
`,
		40: `
INTERFACE  MODE     PROGRAM    BY
eth0       native   filter     uid 0 ho…
wlp0s20f3  generic  a_progra…  -
größe0     -                   /sys/fs/…
eth1       native   evil       �[2J�roo…
`,
		// The headings are the least that is shown.
		1: `
INTERFACE  MODE  PROGRAM  BY
eth0       nat…  filter   u…
wlp0s20f3  gen…  a_prog…  -
größe0     -              /…
eth1       nat…  evil     �…
`,
	} {
		var b strings.Builder
		writeTable(&b, tableHead, tableRows, width)
		if got := "\n" + b.String(); got != want {
			t.Errorf("in %d columns:%s\nwant:%s", width, got, want)
		}
	}
}

func TestNoTableIsWiderThanItsTerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		columns := rapid.IntRange(1, 6).Draw(t, "columns")
		head := rapid.SliceOfN(rapid.StringMatching(`[A-Z]{1,9}`), columns, columns).Draw(t, "head")
		rows := rapid.SliceOfN(rapid.SliceOfN(rapid.String(), columns, columns), 0, 5).Draw(t, "rows")
		width := rapid.IntRange(1, 120).Draw(t, "width")

		var b bytes.Buffer
		writeTable(&b, head, rows, width)
		least := utf8.RuneCountInString(strings.Join(head, columnGap))
		lines := strings.Split(b.String(), "\n")
		if len(lines) != len(rows)+2 || lines[len(rows)+1] != "" {
			t.Fatalf("%d rows are %d lines: %q", len(rows), len(lines), lines)
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > max(width, least) {
				t.Errorf("a line has %d columns of %d: %q", n, width, line)
			}
			for _, r := range line {
				if !unicode.IsPrint(r) {
					t.Errorf("%q can't be printed: %q", r, line)
				}
			}
		}
	})
}

func TestATableWithoutATerminalShortensNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cell := rapid.StringMatching(`[a-z]{1,300}`).Draw(t, "cell")
		var b bytes.Buffer
		writeTable(&b, []string{"A", "B"}, [][]string{{"x", cell}}, terminalWidth(&b))
		if !strings.Contains(b.String(), cell) {
			t.Errorf("%q is not in %q", cell, b.String())
		}
	})
}
