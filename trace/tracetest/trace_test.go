package tracetest

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/trace"
)

func traceCommand([]string) int { return 0 }

func TestATraceTellsWhichMembersAPacketMetAndWhatEachReturned(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			o := w.build(s, 4)
			o.Count = 2
			tr := s.open(o, "udp dst port 5353")
			s.returns(pass, drop)
			s.send(1, "another port")
			s.send(5353, "dropped")
			p, err := tr.Next(t.Context())
			s.must(err)
			s.returns()
			s.send(5353, "passed")
			q, err := tr.Next(t.Context())
			s.must(err)
			t.Log(p.Summary(), p.Explain(tr.Members()), "(", p.Path(tr.Members()), ")", time.Since(p.Time))
			t.Log(q.Summary(), q.Explain(tr.Members()), "(", q.Path(tr.Members()), ")")
			for i := range tr.Members() {
				t.Log(i, tr.Unseen(i))
			}
			var met, passed []trace.Step
			if w.members {
				met = steps(pass, drop)
				passed = steps(pass, pass, pass, pass)
			} else {
				met, passed = []trace.Step{}, []trace.Step{}
			}
			if d := cmp.Diff(met, p.Met); d != "" || p.Verdict != drop {
				t.Error(p.Verdict, d)
			}
			if d := cmp.Diff(passed, q.Met); d != "" || q.Verdict != pass {
				t.Error(q.Verdict, d)
			}
		})
	}
}

// steps are those of a packet that met the first members.
func steps(returned ...trace.Verdict) []trace.Step {
	all := []trace.Step{}
	for i, v := range returned {
		all = append(all, trace.Step{Member: i, Returned: v})
	}
	return all
}
