package clitest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// whoFinding is what `holdfast who` prints of one program.
type whoFinding struct {
	inspect.Finding
	Name     string           `json:"name"`
	Lifetime arbiter.Lifetime `json:"lifetime"`
}

func (m *machine) who(args ...string) []whoFinding {
	m.t.Helper()
	r := m.holdfast(append([]string{"who", "-o", "json"}, args...)...)
	return decode[struct{ Findings []whoFinding }](r, "who").Findings
}

func TestWhoTellsOfHoldfastsHooksAndOfForeignOnes(t *testing.T) {
	m := newMachine(t)
	if err := m.Near.Conn.AddVethAt(1000, "foreign0", 1001, "foreign0p"); err != nil {
		t.Fatal(err)
	}
	mine := m.attach("filter", "--name", "mine")
	theirs := kerneltest.Pass(t, "theirs", nil)
	var link kernel.FD
	m.Near.In(t, func() (err error) {
		link, err = kernel.LinkCreateXDP(theirs.FD(), 1000, 0)
		return err
	})
	defer link.Close()
	pin := filepath.Join(kerneltest.BPFFS(t), "theirs")
	if err := kernel.Pin(link, pin); err != nil {
		t.Fatal(err)
	}

	one := func(all []whoFinding) whoFinding {
		t.Helper()
		if len(all) != 1 {
			t.Fatalf("there are %+v, want one", all)
		}
		return all[0]
	}
	own := one(m.who(m.NearName))
	if own.Name != "mine" || own.Lifetime != arbiter.Permanent || own.SinceLoad || own.LinkID != mine.LinkID {
		t.Errorf("our own is %+v", own)
	}
	if w := own.Would; !w.Own.OK || w.Share.OK || !w.Replace.OK || w.Detach.Command != "holdfast detach "+m.NearName+" mine" {
		t.Errorf("of our own would be %+v", w)
	}
	foreign := one(m.who("foreign0"))
	if w := foreign.Would; foreign.Name != "" || w.Own.OK || w.Share.OK || w.Replace.OK || w.Detach.OK {
		t.Errorf("the foreign one is %+v, would be %+v", foreign, w)
	}
	id := fmt.Sprint(foreign.Program.ID)
	for _, question := range [][]string{{"--id", id}, {"--pin", pin}, {"--pid", fmt.Sprint(foreign.By.Processes[0].PID)}} {
		if f := one(m.who(question...)); f.LinkID != foreign.LinkID {
			t.Errorf("asked by %q it is %+v", question, f)
		}
	}
	for _, f := range []whoFinding{own, foreign} {
		for _, a := range []inspect.Answer{f.Would.Own, f.Would.Share, f.Would.Replace, f.Would.Detach} {
			if words := strings.Fields(a.Command); len(words) > 0 {
				m.holdfast(append(words[1:], "--help")...).succeeds()
			}
		}
	}
	// What is foretold is so.
	if r := m.holdfast("attach", "foreign0", kerneltest.ObjectFile(t, "pass")); r.code != 4 || !strings.Contains(r.err, "conflict") {
		t.Errorf("to attach: %s", r)
	}
	m.holdfast("who", "nope0").fails(7)
	m.holdfast("who", "--id", "4000000000").fails(7)

	// Another root takes the link away, and the interface is still there.
	forced, err := kernel.LinkByID(mine.LinkID)
	if err != nil {
		t.Fatal(err)
	}
	defer forced.Close()
	if err := kernel.LinkDetach(forced); err != nil {
		t.Fatal(err)
	}
	taken := one(m.who("--id", fmt.Sprint(mine.Program.ID)))
	if note := strings.Join(taken.Notes, ""); !strings.Contains(note, m.NearName+", which is still there: another root detached it by force") {
		t.Errorf("the notes are %q", note)
	}
}
