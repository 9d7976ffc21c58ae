package clitest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// run is `holdfast run` of a child.
func (m *machine) run(child ...string) []string {
	return append([]string{"run", m.NearName, kerneltest.ObjectFile(m.t, "pass"), "--", self, "child"}, child...)
}

func TestRunEndsAsTheCommandDid(t *testing.T) {
	for name, c := range map[string]struct {
		child []string
		want  int
	}{
		"well":          {[]string{"exit", "0"}, 0},
		"with 7":        {[]string{"exit", "7"}, 7},
		"with 255":      {[]string{"exit", "255"}, 255},
		"by SIGKILL":    {[]string{"kill itself", "9"}, 128 + 9},
		"by SIGTERM":    {[]string{"kill itself", "15"}, 128 + 15},
		"by SIGHUP":     {[]string{"kill itself", "1"}, 128 + 1},
		"as no command": {[]string{"frobnicate"}, 99},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			r := m.holdfast(m.run(c.child...)...)
			if r.code != c.want || r.out != "" || strings.Contains(r.err, "holdfast: ") {
				t.Errorf("%s\nwant exit code %d", r, c.want)
			}
			// Who has waited for the command finds the hook empty.
			m.holds(0)
		})
	}
}

func TestRunGivesTheCommandItsInputAndOutput(t *testing.T) {
	m := newMachine(t)
	cmd := m.command(m.run("copy", "--flag", "two words", "-o")...)
	cmd.Stdin = strings.NewReader("from here\nto there\n")
	if r := m.finish(m.Near, cmd).succeeds(); r.out != "from here\nto there\n" || !strings.Contains(r.err, "--flag|two words|-o\n") {
		t.Errorf("%s", r)
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGHUP} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			m := newMachine(t)
			p := m.start(m.command(m.run("tell signal")...))
			p.pid()
			if m.native() == 0 {
				t.Error("the command runs, and nothing is attached")
			}
			if err := p.Cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if got := p.line(); got != s.String() {
				t.Errorf("the command got %q", got)
			}
			if code := p.code(); code != 3 {
				t.Errorf("exit code %d, want the command's", code)
			}
			m.holds(0)
		})
	}
}

func TestWhatHoldfastIsToIgnoreItsCommandIgnores(t *testing.T) {
	m := newMachine(t)
	p := m.start(m.command(append([]string{"child", "ignoring"}, m.run("tell ignored")...)...))
	if got := p.line(); got != "true true false" {
		t.Errorf("the command ignores SIGHUP, SIGINT, SIGTERM: %s", got)
	}
	for _, pid := range []int{p.PID(), p.pid()} {
		for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT} {
			if err := unix.Kill(pid, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.Input.Close()
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.errOut)
	}
}

func TestWhateverIsKilledTheProgramIsGone(t *testing.T) {
	t.Run("holdfast", func(t *testing.T) {
		m := newMachine(t)
		p := m.start(m.command(m.run("until killed")...))
		child := p.pid()
		if m.native() == 0 {
			t.Error("the command runs, and nothing is attached")
		}
		p.Cmd.Process.Kill() // and its standard input, which the command waits for, stays
		m.empties()
		if !kerneltest.Eventually(func() bool { return ended(child) }) {
			t.Error("the command runs on without its program")
		}
	})
	t.Run("the command", func(t *testing.T) {
		m := newMachine(t)
		p := m.start(m.command(m.run("until killed")...))
		if err := unix.Kill(p.pid(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := p.code(); code != 128+9 {
			t.Errorf("exit code %d", code)
		}
		m.holds(0)
	})
	t.Run("all but a child of the command", func(t *testing.T) {
		m := newMachine(t)
		p := m.start(m.command(m.run("leave one behind")...))
		behind := p.pid()
		state, err := p.Cmd.Process.Wait()
		if err != nil || state.ExitCode() != 5 {
			t.Errorf("%v, %v", state, err)
		}
		m.holds(0)
		if ended(behind) {
			t.Error("what the command left behind is gone, so this shows nothing")
		}
	})
}

func TestWithoutACommandNothingIsAttached(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	m.holdfast("run", m.NearName, object, "--", "nosuchcommand").fails(7, "nosuchcommand", "not found", "nothing was attached")
	m.holdfast("run", m.NearName, object, "--", "/no/such/command").fails(7, "/no/such/command", "nothing was attached")
	m.holdfast("run", m.NearName, object, "--", object).fails(5, object, "permission denied", "nothing was attached")
	m.holds(0)
}

func TestARunningCommandIsARivalWithPidAndName(t *testing.T) {
	m := newMachine(t)
	p := m.start(m.command(m.run("until killed")...))
	p.pid()
	id, pid := m.native(), p.PID()
	object := kerneltest.ObjectFile(t, "pass")
	rival := []string{fmt.Sprintf("program %d", id), "link ", fmt.Sprintf("process %d (exe)", pid), "whoever holds the link must let go first"}
	m.holdfast("attach", m.NearName, object).fails(4, rival[:3]...)
	m.holdfast("run", m.NearName, object, "--", self, "child", "exit", "0").fails(4, rival...)
	m.holdfast("detach", m.NearName).fails(4, rival[2], "no permanent attachment of Holdfast's")
	m.holds(id)

	found := m.status(m.NearName)
	if len(found) != 1 || found[0].Program.ID != id || found[0].Lifetime != arbiter.Held ||
		len(found[0].Holders) != 1 || found[0].Holders[0] != (xdp.Holder{PID: pid, Comm: "exe"}) {
		t.Errorf("status is %+v", found)
	}
	if r := m.holdfast("status").succeeds(); !strings.Contains(r.out, fmt.Sprintf("exe[%d]", pid)) || !strings.Contains(r.out, "held") {
		t.Errorf("%s", r)
	}

	m.holdfast("detach", m.NearName, "--foreign", "--expect", itoa(id)).succeeds()
	m.holds(0)
	p.Input.Close()
	if code := p.code(); code != 3 || !strings.Contains(p.errOut.String(), "somebody detached it by force") {
		t.Errorf("after somebody took the program away run ended with %d: %s", code, p.errOut)
	}
}

func TestRunStopsWithItsCommandAndGoesOnWithIt(t *testing.T) {
	m := newMachine(t)
	control, terminal := openTerminal(t)
	cmd := m.command(append([]string{"child", "job"}, m.run("until killed")...)...)
	cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, 3
	cmd.ExtraFiles = []*os.File{terminal}
	p := m.start(cmd)
	holdfast, child := p.pid(), p.pid()
	both := func(stopped bool) {
		t.Helper()
		if !kerneltest.Eventually(func() bool {
			return (processState(holdfast) == "T") == stopped && (processState(child) == "T") == stopped
		}) {
			t.Fatalf("holdfast is %s and its command %s, want both stopped: %t", processState(holdfast), processState(child), stopped)
		}
	}
	for range 2 {
		if _, err := control.Write([]byte{26}); err != nil { // Ctrl-Z
			t.Fatal(err)
		}
		both(true)
		if m.native() == 0 {
			t.Error("it stopped, and nothing is attached")
		}
		if err := unix.Kill(-holdfast, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		both(false)
	}
	p.Input.Close()
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.errOut)
	}
	m.holds(0)
}

func TestWhilePIDHoldsAsLongAsTheProcessLives(t *testing.T) {
	m := newMachine(t)
	watched := m.start(m.command("child", "until killed"))
	pid := watched.pid()
	at := m.attach("pass", "--while-pid", itoa(pid))
	m.holds(at.Program.ID)
	if at.Lifetime != arbiter.Held || at.Held != xdp.HeldByLink {
		t.Errorf("attached %+v", at)
	}
	m.holder("holdfast")
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass")).fails(4, "(holdfast)")
	watched.Input.Close()
	watched.code()
	m.empties()
}

// holder is the one process that holds the link at Near.
func (m *machine) holder(comm string) int {
	m.t.Helper()
	found := m.status()
	if len(found) != 1 || found[0].Lifetime != arbiter.Held || len(found[0].Holders) != 1 || found[0].Holders[0].Comm != comm {
		m.t.Fatalf("status is %+v, want one holder", found)
	}
	return found[0].Holders[0].PID
}

func TestTheHolderKeepsNothingOfItsCallerOpen(t *testing.T) {
	m := newMachine(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	cmd := m.command("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--while-pid", itoa(os.Getpid()))
	cmd.ExtraFiles = []*os.File{in, in, in, in, in, in, in, in} // among them those that the holder has its own at
	m.finish(m.Near, cmd).succeeds()
	in.Close()
	if err := out.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe is still open: %v", err)
	}
	if err := unix.Kill(m.holder("holdfast"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.empties()
}

func TestWhilePIDEndsWithItsHolder(t *testing.T) {
	m := newMachine(t)
	m.attach("tailcall", "--program", "enter", "--while-pid", itoa(os.Getpid()))
	if err := unix.Kill(m.holder("holdfast"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.empties()
}

func TestAZombieIsNoProcessToWaitFor(t *testing.T) {
	m := newMachine(t)
	p := m.start(m.command("child", "until killed"))
	pid := p.pid()
	p.Input.Close()
	if !kerneltest.Eventually(func() bool { return ended(pid) }) {
		t.Fatal("the process goes on")
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--while-pid", itoa(pid)).fails(7, fmt.Sprintf("process %d has ended", pid))
	m.empties()
}

func TestRunLogsWhatItAttachedAndPrintsNothing(t *testing.T) {
	m := newMachine(t)
	r := m.holdfast(append([]string{"--log-level", "warn"}, m.run("exit", "0")...)...).succeeds()
	if r.out != "" || r.err != "" {
		t.Errorf("%s", r)
	}
	r = m.holdfast(m.run("exit", "0")...).succeeds()
	if r.out != "" || bytes.Count([]byte(r.err), []byte("\n")) != 1 {
		t.Errorf("%s", r)
	}
	r.says("msg=attached", "interface="+m.NearName, "program=", "link=")
}

func TestRunNeedsNoMoreThanWhatAttachingNeeds(t *testing.T) {
	m := newMachine(t)
	cmd := m.command(m.run("exit", "7")...)
	object := "/run/pass.o"
	content, err := os.ReadFile(cmd.Args[3])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, content, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(object) })
	cmd.Args[3] = object
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF}
	r := m.finish(m.Near, cmd)
	if r.code != 7 || r.out != "" || strings.Contains(r.err, "holdfast: ") {
		t.Errorf("%s\nwant the command's exit code", r)
	}
	r.says("msg=attached", "only root can read Holdfast's state")
	m.holds(0)
}
