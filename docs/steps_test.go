package docs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const fence3 = "```"

func TestAPageIsReadInSteps(t *testing.T) {
	page := strings.ReplaceAll(`# A page

<!-- sh
ip link add eth0 type dummy
-->

First:

~~~sh
holdfast status
~~~

~~~output
INTERFACE  ID
~~~

<!-- fails: 4 -->
~~~sh
holdfast attach eth0 other.o
~~~

<!-- not run: needs a card -->

~~~sh
holdfast features eth7
~~~

<!-- where: holdfast features | grep freplace -->
<!-- until: test -S daemon.sock -->
~~~sh
holdfast daemon
~~~

~~~
not for us
~~~
`, "~~~", fence3)
	output := "INTERFACE  ID\n"
	want := []Step{
		{Line: 3, Code: "ip link add eth0 type dummy\n", Hidden: true},
		{Line: 9, Code: "holdfast status\n", Output: &output},
		{Line: 18, Code: "holdfast attach eth0 other.o\n", Exit: 4},
		{Line: 24, Code: "holdfast features eth7\n", NotRun: "needs a card"},
		{Line: 30, Code: "holdfast daemon\n", Where: "holdfast features | grep freplace", Until: "test -S daemon.sock"},
	}
	got, err := Steps(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps differ (-want +got):\n%s", diff)
	}
}

func TestAPageThatCanNotBeMeantIsRefused(t *testing.T) {
	for name, page := range map[string]string{
		"output of nothing":           "~~~output\nx\n~~~\n",
		"output behind text":          "~~~sh\nx\n~~~\n\nIt says:\n\n~~~output\nx\n~~~\n",
		"a block without an end":      "~~~sh\nx\n",
		"a hidden step without end":   "<!-- sh\nx\n",
		"a comment about nothing":     "<!-- fails: 4 -->\n",
		"a comment about text":        "<!-- fails: 4 -->\ntext\n",
		"a comment about no sh":       "<!-- fails: 4 -->\n<!-- where: x -->\n~~~go\nx\n~~~\n",
		"a comment about other block": "<!-- not run: x -->\n~~~go\nx\n~~~\n",
	} {
		if steps, err := Steps(strings.ReplaceAll(page, "~~~", fence3)); err == nil {
			t.Errorf("%s was taken for %v", name, steps)
		}
	}
}

func TestOutputMatchesButForWhatDiffersEachTime(t *testing.T) {
	for _, c := range []struct {
		name, shown, printed string
		want                 bool
	}{
		{"the same", "a b\n", "a b\n", true},
		{"other blanks", "a  b\n", " a b \n", true},
		{"another id", "program 61\n", "program 7\n", true},
		{"another time", "since 2026-11-23 12:25:57\n", "since 2027-01-01 00:00:00\n", true},
		{"another digit", "2 received\n", "0 received\n", false},
		{"a word more", "a b\n", "a b c\n", false},
		{"a line more", "a\n", "a\nb\n", false},
		{"a line less", "a\nb\n", "a\n", false},
		{"whatever in a line", "a … c\n", "a b (b) c\n", true},
		{"whatever, but not in two lines", "a … c\n", "a b\n c\n", false},
		{"whatever lines", "a\n…\nc\n", "a\nb\nb\nc\n", true},
		{"no lines", "a\n…\nc\n", "a\nc\n", true},
		{"signs of expressions", "a.c (x)\n", "abc (x)\n", false},
		{"nothing", "", "a\n", false},
	} {
		if got := Matches(c.shown, c.printed); got != c.want {
			t.Errorf("%s: %q and %q: %v", c.name, c.shown, c.printed, got)
		}
	}
}
