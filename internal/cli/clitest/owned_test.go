package clitest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// chainEngine is the engine that a chain of several members gets here.
func chainEngine(t testing.TB) string {
	if hasFreplace(t) {
		return "live"
	}
	return "fused"
}

// engines are those that this kernel has.
func engines(t testing.TB) []string {
	if hasFreplace(t) {
		return []string{"live", "fused"}
	}
	return []string{"fused"}
}

func TestMembersOfAnOwnedHookAreAddedPlacedReplacedAndRemoved(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(engine, func(t *testing.T) {
			m := newMachine(t)
			filter, passes := kerneltest.ObjectFile(t, "filter"), kerneltest.ObjectFile(t, "pass")
			drops, asks := kerneltest.ObjectFile(t, "drop"), kerneltest.ObjectFile(t, "runconfig")
			change := func(args ...string) hookStatus {
				t.Helper()
				at := decode[hookStatus](m.holdfast(append(args, "-o", "json")...), "attachment")
				m.holds(at.Program.ID)
				return at
			}
			ports := func(a, b uint32) {
				t.Helper()
				if m.action(53) != a || m.action(54) != b {
					t.Errorf("port 53: %d, port 54: %d, want %d and %d", m.action(53), m.action(54), a, b)
				}
			}

			first := m.attach("filter", "--name", "guard", "--set", "drop_port=53")
			if first.Chain.Engine != "single" || first.Chain.String() != "guard/50/pass" {
				t.Errorf("attached %+v", first.Chain)
			}
			two := change("attach", m.NearName, passes, "--name", "sample", "--engine", engine)
			if two.Chain.Engine != engine || two.LinkID != first.LinkID || two.Chain.String() != "guard/50/pass sample/50/pass" || two.Lifetime != arbiter.Permanent {
				t.Errorf("attached %+v with %+v", two, two.Chain)
			}
			ports(drop, pass)
			// One that says itself where it wants to run.
			change("attach", m.NearName, asks)
			m.wants("runconfig/10/drop+pass guard/50/pass sample/50/pass")
			change("attach", m.NearName, drops, "--before", "sample", "--name", "last", "--proceed-on", "drop")
			m.wants("runconfig/10/drop+pass guard/50/pass last/50/drop sample/50/pass")
			m.holdfast("attach", m.NearName, passes, "--name", "guard").fails(4, `"guard"`, "the name is taken", "choose another name")
			m.holdfast("attach", m.NearName, passes, "--after", "nobody").fails(7, `"nobody"`, `"guard"`)
			m.holdfast("attach", m.NearName, passes, "--exclusive").fails(4, "can't be shared", `"guard"`)
			m.holdfast("attach", m.NearName, passes, "--expect", "empty").fails(4, "generation")
			ports(drop, pass)

			// The replaced one keeps its name and its place.
			guard := m.member("guard")
			change("replace", m.NearName, "guard", filter, "--set", "drop_port=54", "--expect-generation", fmt.Sprint(guard.Generation))
			ports(pass, drop)
			m.wants("runconfig/10/drop+pass guard/50/pass last/50/drop sample/50/pass")
			m.holdfast("replace", m.NearName, "guard", filter, "--expect-generation", fmt.Sprint(guard.Generation)).fails(4, `"guard"`, "generation")
			m.holdfast("replace", m.NearName, "guard", filter, "--expect", "4000000000").fails(4, "expected program 4000000000", itoa(m.native()))
			change("replace", m.NearName, "guard", filter, "--set", "drop_port=53", "--expect", itoa(m.native()))
			ports(drop, pass)
			m.holdfast("replace", m.NearName, filter).fails(2, "runconfig, guard, last, sample", "name the one that is meant")
			m.holdfast("replace", m.NearName, "nobody", filter).fails(7, `"nobody"`, `"guard"`)

			change("set", m.NearName, "guard", "--proceed-on", "pass,drop")
			ports(pass, pass)
			change("set", m.NearName, "guard", "--proceed-on", "pass", "--priority", "7")
			ports(drop, pass)
			m.wants("guard/7/pass runconfig/10/drop+pass last/50/drop sample/50/pass")
			change("set", m.NearName, "last", "--after", "sample", "--proceed-on", "")
			ports(drop, drop)
			m.wants("guard/7/pass runconfig/10/drop+pass sample/50/pass last/50/")
			m.holdfast("set", m.NearName, "last", "--exclusive").fails(4, "can't be shared")
			m.holdfast("set", m.NearName, "nobody", "--priority", "1").fails(7, `"nobody"`)

			m.holdfast("detach", m.NearName).fails(2, "guard, runconfig, sample, last", "--all")
			m.holdfast("detach", m.NearName, "nobody").fails(7, `"nobody"`)
			m.holdfast("detach", m.NearName, "guard", "nobody").fails(7, `"nobody"`)
			m.wants("guard/7/pass runconfig/10/drop+pass sample/50/pass last/50/")
			detached := decode[struct {
				Members []memberStatus
				Chain   *chainStatus
			}](m.holdfast("detach", m.NearName, "last", "runconfig", "-o", "json"), "detached")
			if len(detached.Members) != 2 || detached.Members[0].Name != "last" || detached.Chain.String() != "guard/7/pass sample/50/pass" {
				t.Errorf("detached %+v", detached)
			}
			r := m.holdfast("detach", m.NearName, "sample").succeeds()
			if !strings.HasPrefix(r.out, "detached from "+m.NearName+": sample") || !strings.Contains(r.out, "; left is a "+engine+" chain of 1 member\n  1.  guard") {
				t.Errorf("%s", r)
			}
			ports(drop, pass)
			m.holdfast("detach", m.NearName).succeeds()
			m.holds(0)
			if left := entries(t, m.state); len(left) > 0 {
				t.Errorf("left in the state: %v", left)
			}
		})
	}
}

// member is the member of that name at Near.
func (m *machine) member(name string) memberStatus {
	m.t.Helper()
	c := m.chain()
	if c != nil {
		for _, member := range c.Members {
			if member.Name == name {
				return member
			}
		}
	}
	m.t.Fatalf("the chain has no %s: %+v", name, c)
	return memberStatus{}
}

func TestTheEngineIsTheOneThatTheKernelHas(t *testing.T) {
	m := newMachine(t)
	m.attach("filter")
	r := m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass")).succeeds()
	if want := fmt.Sprintf("attached %s: a %s chain of 2 members, program %d ", m.NearName, chainEngine(t), m.native()); !strings.HasPrefix(r.out, want) {
		t.Errorf("%s\nwant %s", r, want)
	}
	if r := m.holdfast("status").succeeds(); strings.Count(r.out, "\n") != 4 || !strings.Contains(r.out, "\n  2.  xdp_pass") || !strings.Contains(r.out, "a "+chainEngine(t)+" chain of 2 members") {
		t.Errorf("%s", r)
	}
	object := kerneltest.ObjectFile(t, "drop")
	if !hasFreplace(t) {
		r.says("fused into one program", "freplace")
		m.holdfast("attach", m.NearName, object, "--engine", "live").fails(6, "freplace")
		return
	}
	// A member of a live chain is named by its own program, too.
	m.holdfast("set", m.NearName, m.id("xdp_pass"), "--priority", "3").succeeds()
	m.holdfast("replace", m.NearName, "xdp_pass", object, "--expect", m.id("xdp_pass")).succeeds()
	m.wants("xdp_pass/3/pass filter/50/pass")
	m.holdfast("detach", m.NearName, m.id("xdp_pass")).succeeds()
	m.wants("filter/50/pass")
}

func TestAllMembersGoAtOnceIfThatIsMeant(t *testing.T) {
	m := newMachine(t)
	pin := filepath.Join(m.pins, "theirs")
	m.attach("filter", "--persist-as", pin)
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "drop"), "--persist-as", pin+"2").fails(2, "--persist-as", "first")
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "drop")).succeeds()
	m.holdfast("detach", m.NearName, "--expect", itoa(m.native())).fails(2, "filter, xdp_drop", "--all")
	m.holdfast("detach", m.NearName, "--all", "--expect", "4000000000").fails(4, "expected program 4000000000")
	r := m.holdfast("detach", m.NearName, "--all", "--expect", itoa(m.native())).succeeds()
	if !strings.HasPrefix(r.out, "detached "+m.NearName+": filter") || strings.Count(r.out, "\n") != 1 {
		t.Errorf("%s", r)
	}
	m.holds(0)
	if left := append(entries(t, m.state), entries(t, m.pins)...); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

func TestAHeldMemberComesAndGoesInAChain(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(engine, func(t *testing.T) {
			m := newMachine(t)
			m.attach("filter", "--set", "drop_port=53", "--engine", engine)
			object := kerneltest.ObjectFile(t, "drop")
			p := m.start(m.command("run", m.NearName, object, "--name", "breaker", "--", self, "child", "until killed"))
			p.pid()
			m.wants("filter/50/pass breaker/50/pass")
			if member := m.member("breaker"); member.Lifetime != arbiter.Held || member.Owner.PID != p.PID() {
				t.Errorf("the member is %+v", member)
			}
			if m.action(53) != drop || m.action(54) != drop {
				t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
			}
			// A change of others moves or links anew what the process holds.
			m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--before", "filter").succeeds()
			m.wants("xdp_pass/50/pass filter/50/pass breaker/50/pass")
			m.holdfast("detach", m.NearName, "breaker").fails(4, fmt.Sprintf("process %d (exe) holds it", p.PID()))
			m.holdfast("set", m.NearName, "breaker", "--proceed-on", "drop").succeeds()
			p.Input.Close()
			if code := p.code(); code != 0 {
				t.Errorf("run ended with %d: %s", code, p.errOut)
			}
			m.wants("xdp_pass/50/pass filter/50/pass")
			if m.action(53) != drop || m.action(54) != pass {
				t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
			}
		})
	}
}

func TestAHeldMemberThatIsKilledIsForgottenByTheNextChange(t *testing.T) {
	m := newMachine(t)
	m.attach("filter", "--set", "drop_port=53")
	p := m.start(m.command("run", m.NearName, kerneltest.ObjectFile(t, "drop"), "--name", "breaker", "--", self, "child", "until killed"))
	p.pid()
	p.Cmd.Process.Kill()
	p.code()
	if !kerneltest.Eventually(func() bool { return m.member("breaker").Ended }) {
		t.Errorf("the member is %+v", m.member("breaker"))
	}
	if hasFreplace(t) && !kerneltest.Eventually(func() bool { return m.action(54) == pass }) {
		t.Error("the member runs on without its process")
	}
	// The name is free, for the same command as well.
	r := m.holdfast("run", m.NearName, kerneltest.ObjectFile(t, "drop"), "--name", "breaker", "--", self, "child", "exit", "4")
	if r.code != 4 {
		t.Errorf("%s", r)
	}
	m.wants("filter/50/pass")
	if m.action(53) != drop || m.action(54) != pass {
		t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
	}
}

func TestWhileAProcessLivesItsMemberIsInTheChain(t *testing.T) {
	m := newMachine(t)
	m.attach("filter")
	watched := m.start(m.command("child", "until killed"))
	pid := watched.pid()
	at := m.attach("pass", "--name", "a name", "--while-pid", itoa(pid), "--priority", "3", "--proceed-on", "tx,pass")
	if at.Chain.String() != "a name/3/pass+tx filter/50/pass" || at.Lifetime != arbiter.Permanent {
		t.Errorf("attached %+v", at.Chain)
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "drop")).succeeds()
	holder := m.member("a name").Owner.PID
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", holder)); err != nil || string(comm) != "holdfast\n" {
		t.Errorf("the holder is %q, %v", comm, err)
	}
	watched.Input.Close()
	watched.code()
	if !kerneltest.Eventually(func() bool { return ended(holder) }) {
		t.Error("the holder runs on")
	}
	m.wants("filter/50/pass xdp_drop/50/pass")

	// One that is taken off ends, and its holder with it.
	m.attach("pass", "--while-pid", itoa(os.Getpid()))
	holder = m.member("xdp_pass").Owner.PID
	m.holdfast("detach", m.NearName, "xdp_pass", "--foreign").succeeds()
	if !kerneltest.Eventually(func() bool { return ended(holder) }) {
		t.Error("the holder holds nothing, and runs on")
	}
	m.wants("filter/50/pass xdp_drop/50/pass")
}

func TestWhilePIDTellsWhatIsWrongAndLeavesNothing(t *testing.T) {
	m := newMachine(t)
	for says, args := range map[string][]string{
		"--program":             {kerneltest.ObjectFile(t, "two")},
		"verifier refused":      {kerneltest.ObjectFile(t, "bad")},
		"/nope.o":               {"/nope.o"},
		`"nobody"`:              {kerneltest.ObjectFile(t, "pass"), "--before", "nobody"},
		"begins or ends with a": {kerneltest.ObjectFile(t, "pass"), "--name", " x"},
	} {
		r := m.holdfast(append([]string{"attach", m.NearName, "--while-pid", itoa(os.Getpid())}, args...)...)
		if r.code == 0 || r.out != "" || strings.Count(r.err, "holdfast: ") != 1 {
			t.Errorf("%s", r)
		}
		r.says(says)
		m.holds(0)
	}
	if left := entries(t, m.state); len(left) > 0 {
		t.Errorf("left in the state: %v", left)
	}
}

func TestAnExclusiveHookIsSharedWhenItsMemberIsAsked(t *testing.T) {
	m := newMachine(t)
	m.attach("filter", "--set", "drop_port=53")
	r := m.holdfast("set", m.NearName, "filter", "--exclusive").succeeds()
	if !strings.HasPrefix(r.out, "changed "+m.NearName+": exclusive, program ") {
		t.Errorf("%s", r)
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass")).fails(4, "can't be shared", `"filter"`)
	if !m.chain().Exclusive {
		t.Error("status does not say that it is exclusive")
	}
	m.holdfast("set", m.NearName, "filter", "--exclusive=false").succeeds()
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass")).succeeds()
	m.wants("filter/50/pass xdp_pass/50/pass")
}

func TestALockedInterfaceIsNobodys(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	at := decode[hookStatus](m.holdfast("lock", m.NearName, "-o", "json"), "attachment")
	m.holds(at.Program.ID)
	if !at.Chain.Locked || at.Held != xdp.HeldByLink || at.Lifetime != arbiter.Permanent || m.action(53) != pass {
		t.Errorf("locked %+v", at)
	}
	m.holdfast("lock", m.NearName).succeeds()
	m.holdfast("attach", m.NearName, object).fails(4, "locked", "unlock")
	m.holdfast("run", m.NearName, object, "--", self, "child", "exit", "0").fails(4, "locked", "unlock")
	m.holdfast("attach", m.NearName, object, "--shared", "--single").fails(4, "conflict", itoa(at.Program.ID))
	m.holdfast("detach", m.NearName).fails(4, "locked", "holdfast unlock")
	m.holdfast("detach", m.NearName, "--all").fails(4, "locked", "holdfast unlock")
	if err := m.Near.Conn.SetXDP(m.NearIndex, -1, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("detach by netlink: %v", err)
	}
	if r := m.holdfast("status").succeeds(); !strings.Contains(r.out, "locked") {
		t.Errorf("%s", r)
	}
	m.holds(at.Program.ID)
	if r := m.holdfast("unlock", m.NearName).succeeds(); r.out != "unlocked "+m.NearName+"\n" {
		t.Errorf("%s", r)
	}
	m.holds(0)
	m.holdfast("unlock", m.NearName).fails(2, "not locked")
	m.attach("pass")
	m.holdfast("lock", m.NearName).fails(4, "the hook has members", `"xdp_pass"`)
}

func TestWhatNetlinkAttachedIsAdoptedWithAGapThatIsTold(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "filter")
	adopt := []string{"adopt", m.NearName, object, "--allow-gap"}
	m.holdfast(adopt...).fails(7, "not attached")
	m.holdfast("attach", m.NearName, object, "--shared", "--single").succeeds()
	m.holdfast(adopt...).fails(4, "Holdfast attached it")
	m.holdfast("detach", m.NearName).succeeds()

	theirs := kerneltest.Pass(t, "filter", nil)
	if err := m.Near.Conn.SetXDP(m.NearIndex, theirs.FD(), 0); err != nil {
		t.Fatal(err)
	}
	before := m.native()
	m.holdfast("adopt", m.NearName, object).fails(2, "packets in between", "--allow-gap")
	m.holdfast("adopt", m.NearName, kerneltest.ObjectFile(t, "drop"), "--allow-gap").fails(4, `"xdp_drop"`, itoa(before))
	m.holds(before)
	r := m.holdfast(append(adopt, "--name", "guard", "--set", "drop_port=53", "-o", "json")...)
	type adopted struct {
		hookStatus
		From uint32 `json:"adopted_program"`
		Gap  int64  `json:"gap_ns"`
	}
	if at := decode[adopted](r, "attachment"); at.From != before || at.Gap <= 0 || at.Held != xdp.HeldByLink || at.Chain.String() != "guard/50/pass" {
		t.Errorf("adopted %+v", at)
	}
	if m.action(53) != drop || m.action(54) != pass {
		t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
	}
	m.holdfast(adopt...).fails(4, "owned already")
	m.holdfast("detach", m.NearName).succeeds()
}

func TestMembersAreCompleted(t *testing.T) {
	m := newMachine(t)
	m.attach("filter", "--name", "guard")
	for _, verb := range []string{"detach", "set", "replace"} {
		if r := m.holdfast("__completeNoDesc", verb, m.NearName, "").succeeds(); !strings.HasPrefix(r.out, "guard\n") {
			t.Errorf("%s", r)
		}
	}
}
