package owned

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/chain"
)

func TestADiffShowsTheWholeChain(t *testing.T) {
	for name, c := range map[string]struct {
		before  Chain
		changes []Change
		want    string
	}{
		"of several changes": {three(), []Change{
			{Op: Add, Name: "first", Priority: priority(1)},
			{Op: Set, Name: "c", Before: "b", ProceedOn: actions(chain.Pass, chain.Drop)},
			{Op: Replace, Name: "a"},
		}, `--- generation 3
+++ generation 4
-a      priority 10  proceed-on XDP_PASS           permanent  version 1
+first  priority 1   proceed-on XDP_PASS           permanent  version 4
+a      priority 10  proceed-on XDP_PASS           permanent  version 5
+c      priority 50  proceed-on XDP_DROP,XDP_PASS  permanent  version 3
 b      priority 50  proceed-on XDP_PASS           held       version 2
-c      priority 50  proceed-on XDP_PASS           permanent  version 3
`},
		"of a move alone": {three(), []Change{{Op: Set, Name: "b", After: "c"}}, `--- generation 3
+++ generation 4
 a  priority 10  proceed-on XDP_PASS  permanent  version 1
-b  priority 50  proceed-on XDP_PASS  held       version 2
 c  priority 50  proceed-on XDP_PASS  permanent  version 3
+b  priority 50  proceed-on XDP_PASS  held       version 2
`},
		"of an empty hook": {Chain{}, []Change{{Op: Add, Name: "Größe", ProceedOn: actions(), Exclusive: yes}}, `--- generation 0
+++ generation 1
+exclusive
+Größe  priority 50  proceed-on nothing  permanent  version 1
`},
		"of a remove": {alone(), []Change{{Op: Remove, Name: "a"}}, `--- generation 3
+++ generation 4
-exclusive
-a  priority 10  proceed-on XDP_PASS  permanent  version 1
`},
		"of nothing": {three(), []Change{{Op: Set, Name: "a", Priority: priority(10)}}, ""},
	} {
		r, err := c.before.Apply(Transaction{Changes: c.changes})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Diff.String(); got != c.want {
			t.Errorf("%s:\n%s", name, cmp.Diff(c.want, got))
		}
	}
}

func TestADiffTellsWhatIsDifferentAboutEachMember(t *testing.T) {
	r, err := three().Apply(Transaction{Changes: []Change{
		{Op: Remove, Name: "b"},
		{Op: Add, Name: "b", Priority: priority(90)},
		{Op: Remove, Name: "c"},
		{Op: Add, Name: "x", Before: "a"},
		{Op: Set, Name: "a", ProceedOn: actions(chain.Tx), Priority: priority(20)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range r.Diff.Members {
		got = append(got, fmt.Sprintf("%s %s %t %t", d.Name, d.What, d.Before != nil, d.After != nil))
	}
	want := []string{
		"c [removed] true false",
		"x [added] false true",
		"a [priority proceed_on] true true",
		"b [replaced priority lifetime] true true",
	}
	if !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	r, err = three().Apply(Transaction{Changes: []Change{{Op: Set, Name: "a", After: "c"}}})
	if err != nil || len(r.Diff.Members) != 1 || !cmp.Equal(r.Diff.Members[0].What, []string{Moved, PriorityChanged}) {
		t.Errorf("%+v, %v", r.Diff.Members, err)
	}
}

func TestADiffIsReadAsItWasWritten(t *testing.T) {
	r, err := three().Apply(Transaction{Changes: []Change{{Op: Add, Name: "x", Before: "a"}, {Op: Remove, Name: "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Diff)
	if err != nil {
		t.Fatal(err)
	}
	var again Diff
	if err := json.Unmarshal(b, &again); err != nil || !cmp.Equal(again, r.Diff) {
		t.Errorf("%v, %s", err, cmp.Diff(r.Diff, again))
	}
}
