package clitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestAnOwnedHookIsNobodyElsesUntilItIsDetached(t *testing.T) {
	m := newMachine(t)
	at := m.attach("filter", "--set", "drop_port=53", "--name", "dns filter", "--exclusive")
	m.holds(at.Program.ID)
	if at.Interface != m.NearName || at.Index != m.NearIndex || at.Mode != xdp.Native || at.Held != xdp.HeldByLink ||
		at.Name != "dns filter" || at.Lifetime != arbiter.Permanent || at.Owner == nil || at.Owner.UID != 0 || at.Program.Name != "filter" {
		t.Errorf("attached %+v", at)
	}
	if m.action(53) != drop || m.action(54) != pass {
		t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
	}

	rival := []string{
		m.NearName, "conflict", fmt.Sprintf(`program %d "filter"`, at.Program.ID), fmt.Sprintf("link %d", at.LinkID),
		filepath.Join(m.state, at.Entry, "link"), `"dns filter"`, "uid 0", "; detach it first, or replace it",
	}
	member := []string{m.NearName, "the hook can't be shared", `"dns filter"`, "is uid 0 ", "since "}
	object := kerneltest.ObjectFile(t, "pass")
	m.holdfast("attach", m.NearName, object).fails(4, member...)
	m.holdfast("attach", m.NearName, object, "--name", "other", "-o", "json").fails(4, member...)
	m.holdfast("attach", m.NearName, object, "--while-pid", itoa(os.Getpid())).fails(4, member...)
	m.holdfast("run", m.NearName, object, "--", self, "child", "exit", "0").fails(4, member...)
	m.holdfast("attach", m.NearName, object, "--shared", "--single").fails(4, rival...)
	m.holdfast("attach", m.NearName, object, "--shared", "--single", "--expect", itoa(at.Program.ID)).fails(4, rival...)
	m.holdfast("attach", m.NearName, object, "--mode", "generic").fails(4, rival[:4]...)
	m.holds(at.Program.ID)

	// What `ip link set dev ... xdp` sends.
	program := kerneltest.Pass(t, "rival", nil)
	for name, err := range map[string]error{
		"attach":  m.Near.Conn.SetXDP(m.NearIndex, program.FD(), 0),
		"detach":  m.Near.Conn.SetXDP(m.NearIndex, -1, 0),
		"replace": replaceByID(t, m, program.FD(), at.Program.ID),
	} {
		if !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s by netlink: %v", name, err)
		}
	}
	m.holds(at.Program.ID)

	m.holdfast("detach", m.NearName, "--expect", "4000000000").fails(4, "expected program 4000000000", rival[2])
	m.holds(at.Program.ID)
	detached := decode[struct {
		Interface string
		Ifindex   int
	}](m.holdfast("detach", m.NearName, "--expect", itoa(at.Program.ID), "-o", "json"), "detached")
	if detached.Interface != m.NearName || detached.Ifindex != m.NearIndex {
		t.Errorf("detached %+v", detached)
	}
	m.holds(0)
	m.holdfast("detach", m.NearName).fails(7, m.NearName, "not attached", "holdfast status")
	m.holdfast("replace", m.NearName, object).fails(7, m.NearName, "not attached", "holdfast status")
}

// replaceByID replaces by netlink with the right expectation.
func replaceByID(t *testing.T, m *machine, fd int, id uint32) error {
	t.Helper()
	expected, err := kernel.ProgramByID(id)
	if err != nil {
		t.Fatal(err)
	}
	defer expected.Close()
	return m.Near.Conn.ReplaceXDP(m.NearIndex, fd, int(expected), 0)
}

func TestReplaceKeepsTheLinkAndChecksTheExpectation(t *testing.T) {
	m := newMachine(t)
	first := m.attach("filter", "--set", "drop_port=53")
	v2 := kerneltest.ObjectFile(t, "filter")
	second := decode[hookStatus](m.holdfast("replace", m.NearName, v2, "--set", "drop_port=54", "-o", "json"), "attachment")
	m.holds(second.Program.ID)
	if second.Program.ID == first.Program.ID || second.LinkID != first.LinkID || second.Name != first.Name {
		t.Errorf("replaced %+v by %+v", first, second)
	}
	if m.action(53) != pass || m.action(54) != drop {
		t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
	}
	m.holdfast("replace", m.NearName, v2, "--expect", itoa(first.Program.ID)).fails(4,
		"replace "+m.NearName+": conflict", "expected program "+itoa(first.Program.ID), "program "+itoa(second.Program.ID))
	m.holdfast("replace", m.NearName, v2, "--mode", "generic").fails(7, "generic", "not attached")
	m.holds(second.Program.ID)
	m.holdfast("replace", m.NearName, v2, "--expect", itoa(second.Program.ID)).succeeds()
	m.holdfast("replace", m.NearName, v2, "--expect", "any").succeeds()
	r := m.holdfast("replace", m.NearName, v2).succeeds()
	if want := fmt.Sprintf("replaced %s: program %d \"filter\", mode native, owned by link %d, permanent\n", m.NearName, m.native(), first.LinkID); r.out != want || r.err != "" {
		t.Errorf("%s\nwant %s", r, want)
	}
	m.holdfast("detach", m.NearName).succeeds()
	m.holds(0)
}

func TestASharedHookIsComparedAndSwapped(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	first := m.attach("pass", "--shared", "--single", "--name", "first", "--expect", "empty")
	m.holds(first.Program.ID)
	if first.Held != xdp.HeldByNetlink || first.LinkID != 0 || first.Lifetime != arbiter.Permanent {
		t.Errorf("attached %+v", first)
	}
	rival := fmt.Sprintf(`program %d "xdp_pass"`, first.Program.ID)
	m.holdfast("attach", m.NearName, object, "--shared", "--single").fails(4, rival, "by netlink", `"first"`)
	// It is the administrator's own, so attaching over it is a slip.
	for _, expect := range []string{"empty", "any", "4000000000", itoa(first.Program.ID)} {
		m.holdfast("attach", m.NearName, object, "--shared", "--single", "--expect", expect).fails(4, rival, `"first"`, "replace it")
	}
	m.holdfast("attach", m.NearName, object).fails(4, rival, "detach it first")
	m.holdfast("run", m.NearName, object, "--", self, "child", "exit", "0").fails(4, rival, "detach it first")
	m.holds(first.Program.ID)

	// Over somebody else's it is a choice.
	theirs := kerneltest.Pass(t, "theirs", nil)
	id := kerneltest.ProgramID(t, theirs)
	if err := m.Near.Conn.SetXDP(m.NearIndex, theirs.FD(), 0); err != nil {
		t.Fatal(err)
	}
	m.holdfast("attach", m.NearName, object, "--shared", "--single", "--expect", "empty").fails(4, `"theirs"`, "expected an empty hook")
	m.holdfast("attach", m.NearName, object, "--shared", "--single", "--expect", itoa(first.Program.ID)).fails(4, `"theirs"`, "expected program "+itoa(first.Program.ID))
	m.holds(id)
	second := m.attach("drop", "--shared", "--single", "--expect", itoa(id))
	m.holds(second.Program.ID)
	if err := m.Near.Conn.SetXDP(m.NearIndex, theirs.FD(), 0); err != nil {
		t.Fatal(err)
	}
	third := m.attach("drop", "--shared", "--single", "--expect", "any")
	m.holds(third.Program.ID)
	m.holdfast("replace", m.NearName, object, "--expect", itoa(second.Program.ID)).fails(4, "expected program "+itoa(second.Program.ID))
	m.holds(third.Program.ID)
	m.holdfast("replace", m.NearName, object, "--expect", itoa(third.Program.ID)).succeeds()
	fourth := m.native()
	m.holdfast("replace", m.NearName, object).succeeds()
	if fourth == third.Program.ID || m.native() == fourth {
		t.Error("it was not replaced")
	}
	m.holdfast("detach", m.NearName).succeeds()
	m.holds(0)
	m.holdfast("attach", m.NearName, object, "--shared", "--single", "--expect", itoa(third.Program.ID)).fails(4, "nothing is attached")
	m.holds(0)
}

func TestWhatSomebodyElseAttachedIsTakenOffOnlyOnPurpose(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	theirs := kerneltest.Pass(t, "theirs", nil)
	id := kerneltest.ProgramID(t, theirs)
	rival := fmt.Sprintf(`program %d "theirs"`, id)
	// By netlink, over what Holdfast had attached shared.
	m.attach("pass", "--shared", "--single")
	if err := m.Near.Conn.SetXDP(m.NearIndex, theirs.FD(), 0); err != nil {
		t.Fatal(err)
	}
	m.holdfast("attach", m.NearName, object).fails(4, rival, "by netlink", "detach it first")
	m.holdfast("replace", m.NearName, object).fails(4, rival, "no permanent attachment of Holdfast's")
	m.holdfast("detach", m.NearName).fails(4, rival, "no permanent attachment of Holdfast's", "--foreign with --expect")
	m.holdfast("detach", m.NearName, "--expect", itoa(id)).fails(4, rival, "--foreign")
	m.holdfast("detach", m.NearName, "--foreign", "--expect", "4000000000").fails(4, rival, "expected program 4000000000")
	m.holds(id)
	m.holdfast("detach", m.NearName, "--foreign", "--expect", itoa(id)).succeeds()
	m.holds(0)

	// By a link, which then is defunct for its holder.
	link, err := kernel.LinkCreateXDP(theirs.FD(), m.NearIndex, 0)
	if err == nil {
		link.Close()
		t.Fatal("the interface is in the test's own namespace")
	}
	m.Near.In(t, func() error {
		link, err = kernel.LinkCreateXDP(theirs.FD(), m.NearIndex, 0)
		return err
	})
	defer link.Close()
	holder := fmt.Sprintf("process %d (", os.Getpid())
	m.holdfast("attach", m.NearName, object).fails(4, rival, "link ", holder)
	m.holdfast("detach", m.NearName).fails(4, rival, holder, "--foreign")
	m.holds(id)
	m.holdfast("detach", m.NearName, "--foreign", "--expect", "any").succeeds()
	m.holds(0)
	if info, err := kernel.XDPLinkInfo(link); err != nil || info.Ifindex != 0 {
		t.Errorf("the link is %+v, %v, want a defunct one", info, err)
	}
}

func TestInterfacesAreFoundInOtherNamespaces(t *testing.T) {
	m := newMachine(t)
	name := m.Near.Name(t, "blue")
	holder := m.start(m.command("child", "until killed"))
	here := kerneltest.NewNetNS(t)
	object := kerneltest.ObjectFile(t, "pass")
	run := func(args ...string) result { t.Helper(); return m.finish(here, m.command(args...)) }
	for how, spec := range map[string]string{"name": name, "path": "/run/netns/" + name, "pid": itoa(holder.pid())} {
		t.Run("by "+how, func(t *testing.T) {
			m := m.with(t)
			run := func(args ...string) result { t.Helper(); return m.finish(here, m.command(args...)) }
			at := decode[hookStatus](run("attach", m.NearName, object, "--netns", spec, "-o", "json"), "attachment")
			m.holds(at.Program.ID)
			if at.Namespace != spec {
				t.Errorf("attached in namespace %q", at.Namespace)
			}
			run("attach", m.NearName, object, "--netns", spec).fails(4, fmt.Sprintf("network namespace %q", spec))
			run("replace", m.NearName, object, "--netns", spec).succeeds()
			if found := decode[[]hookStatus](run("status", "--netns", spec, "-o", "json"), "status"); len(found) != 1 || found[0].LinkID != at.LinkID {
				t.Errorf("status there is %+v", found)
			}
			if found := decode[[]hookStatus](run("status", "-o", "json"), "status"); len(found) != 0 {
				t.Errorf("status here is %+v", found)
			}
			run("detach", m.NearName, "--netns", spec).succeeds()
			m.holds(0)
			if r := run("run", m.NearName, object, "--netns", spec, "--", self, "child", "exit", "6"); r.code != 6 {
				t.Errorf("%s", r)
			}
			m.holds(0)
		})
	}
	run("attach", m.NearName, object).fails(7, "find interface "+m.NearName, "--netns")
	for _, spec := range []string{"red", "/run/netns/red", "2000000000", "..", "/etc"} {
		run("attach", m.NearName, object, "--netns", spec).fails(7, "open network namespace "+spec, "not found")
		run("status", "--netns", spec).fails(7, "open network namespace "+spec)
	}
	m.holds(0)
}

func TestWhatIsNotThereOrNotFitIsSaidClearly(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	two := kerneltest.ObjectFile(t, "two")
	text := filepath.Join(t.TempDir(), "text.o")
	if err := os.WriteFile(text, []byte("int main() {}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says []string
	}{
		"no such interface":            {[]string{"nope", object}, 7, []string{"find interface nope", "no such interface", "`ip link`"}},
		"no interface's name":          {[]string{"no/pe", object}, 2, []string{"can't be an interface's name"}},
		"a name too long":              {[]string{"interfacewithalongname", object}, 2, []string{"too long"}},
		"no such file":                 {[]string{m.NearName, "/nope.o"}, 7, []string{"/nope.o", "no such file"}},
		"a directory":                  {[]string{m.NearName, t.TempDir()}, 1, []string{"is a directory"}},
		"not an ELF":                   {[]string{m.NearName, text}, 1, []string{text, "not a usable BPF object"}},
		"a device":                     {[]string{m.NearName, "/dev/null"}, 1, []string{"/dev/null"}},
		"a program for a socket":       {[]string{m.NearName, kerneltest.ObjectFile(t, "socket")}, 7, []string{"there is no XDP program"}},
		"refused by the verifier":      {[]string{m.NearName, kerneltest.ObjectFile(t, "bad")}, 1, []string{"program bad", "verifier refused", "--verifier-log"}},
		"a license that does not do":   {[]string{m.NearName, kerneltest.ObjectFile(t, "proprietary")}, 1, []string{"license"}},
		"several programs":             {[]string{m.NearName, two}, 2, []string{"first", "second", "--program"}},
		"a program that there is not":  {[]string{m.NearName, two, "--program", "third"}, 7, []string{"third"}},
		"a section that there is not":  {[]string{m.NearName, two, "--section", "xdp/third"}, 7, []string{"xdp/third"}},
		"an unknown variable":          {[]string{m.NearName, kerneltest.ObjectFile(t, "filter"), "--set", "port=53"}, 2, []string{"port", "drop_port"}},
		"a value that does not fit":    {[]string{m.NearName, kerneltest.ObjectFile(t, "filter"), "--set", "drop_port=65536"}, 2, []string{"drop_port", "65536"}},
		"a value without a variable":   {[]string{m.NearName, kerneltest.ObjectFile(t, "filter"), "--set", "53"}, 2, []string{"53"}},
		"offload that there is not":    {[]string{m.NearName, object, "--mode", "offload"}, 6, []string{"offload"}},
		"maps outside of a bpffs":      {[]string{m.NearName, kerneltest.ObjectFile(t, "pinned"), "--pin-maps", t.TempDir()}, 1, []string{"bpffs"}},
		"a pin outside of a bpffs":     {[]string{m.NearName, object, "--persist-as", filepath.Join(t.TempDir(), "pin")}, 2, []string{"must be in a bpffs"}},
		"a pin where there is nothing": {[]string{m.NearName, object, "--persist-as", filepath.Join(m.state, "a", "pin")}, 7, []string{filepath.Join(m.state, "a")}},
		"a process that there is not":  {[]string{m.NearName, object, "--while-pid", "2000000000"}, 7, []string{"no process 2000000000"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := m.with(t)
			m.holdfast(append([]string{"attach"}, c.args...)...).fails(c.code, c.says...)
			m.holds(0)
			if left := entries(t, m.state); len(left) > 0 {
				t.Errorf("left in the state: %v", left)
			}
		})
	}
	m.holdfast("detach", "nope").fails(7, "find interface nope")
	m.holdfast("replace", "nope", object).fails(7, "find interface nope")
	m.holdfast("status", "nope").fails(7, "find interface nope")
	m.holdfast("features", "nope").fails(7, "nope")
	m.holdfast("run", m.NearName, "/nope.o", "--", self, "child", "exit", "0").fails(7, "/nope.o")
}

// entries lists a state directory without the files that the kernel has there.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if !strings.HasSuffix(e.Name(), ".debug") {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestTheVerifierSpeaksWhenAsked(t *testing.T) {
	m := newMachine(t)
	r := m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "bad"), "--verifier-log")
	if r.code != 1 || r.out != "" || strings.Count(r.err, "\n") < 5 {
		t.Errorf("%s", r)
	}
	r = m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--verifier-log", "-o", "json")
	decode[hookStatus](r, "attachment")
	r.says("processed ")
}

func TestProgramsAreChosenByNameOrSection(t *testing.T) {
	for _, c := range []struct {
		flags []string
		name  string
		want  uint32
	}{
		{[]string{"--program", "first"}, "first", pass},
		{[]string{"--program", "second"}, "second", drop},
		{[]string{"--section", "xdp"}, "first", pass},
		{[]string{"--section", "xdp/second"}, "second", drop},
	} {
		t.Run(strings.Join(c.flags, " "), func(t *testing.T) {
			m := newMachine(t)
			at := m.attach("two", c.flags...)
			if got := m.action(53); at.Program.Name != c.name || at.Name != c.name || got != c.want {
				t.Errorf("attached %+v, which returns %d", at, got)
			}
		})
	}
}

func TestPinnedMapsAreShared(t *testing.T) {
	m := newMachine(t)
	dir := kerneltest.BPFFS(t)
	m.attach("pinned", "--pin-maps", dir, "--set", "step=1")
	if _, err := os.Stat(filepath.Join(dir, "shared")); err != nil {
		t.Error(err)
	}
	object := kerneltest.ObjectFile(t, "pinned")
	m.holdfast("replace", m.NearName, object, "--pin-maps", dir, "--set", "step=10").succeeds()
	m.holdfast("detach", m.NearName).succeeds()
	if _, err := os.Stat(filepath.Join(dir, "shared")); err != nil {
		t.Errorf("the map did not outlive its programs: %v", err)
	}
	m.holdfast("attach", m.NearName, object).succeeds()
	if left := entries(t, m.state); len(left) != 1 {
		t.Errorf("without --pin-maps the state has %v", left)
	}
}

func TestASecondPinIsMadeAndGoesWithTheAttachment(t *testing.T) {
	m := newMachine(t)
	dir := kerneltest.BPFFS(t)
	pin := filepath.Join(dir, "theirs")
	m.attach("pass", "--persist-as", pin)
	link, err := xdp.OpenPinned(pin)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := link.Info(); err != nil || info.ProgramID != m.native() {
		t.Errorf("the pin holds %+v, %v", info, err)
	}
	link.Close()
	if found := m.status(); len(found) != 1 || !strings.Contains(strings.Join(found[0].Pins, " "), pin) {
		t.Errorf("status %+v does not show the pin", found)
	}
	m.holdfast("detach", m.NearName).succeeds()
	if _, err := os.Stat(pin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the detach the pin is there: %v", err)
	}

	if err := os.Mkdir(pin, 0o700); err != nil {
		t.Fatal(err)
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--persist-as", pin).fails(4, pin, "already exists")
	m.empties()
	if left := entries(t, m.state); len(left) > 0 {
		t.Errorf("left in the state: %v", left)
	}
}

func TestModesAreKeptApart(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	at := m.attach("pass", "--mode", "generic")
	if at.Mode != xdp.Generic || m.generic() != at.Program.ID || m.native() != 0 {
		t.Errorf("attached %+v, native is %d", at, m.native())
	}
	m.holdfast("attach", m.NearName, object, "--mode", "native").fails(4, "in generic mode")
	m.holdfast("detach", m.NearName, "--mode", "native").fails(7, "not attached")
	if m.generic() != at.Program.ID {
		t.Error("it was detached")
	}
	r := m.holdfast("replace", m.NearName, object, "-o", "json")
	if again := decode[hookStatus](r, "attachment"); again.Mode != xdp.Generic {
		t.Errorf("replaced it in mode %s", again.Mode)
	}
	if strings.Contains(r.err, "no native mode") {
		t.Errorf("%s\nof a driver that has it", r)
	}
	m.holdfast("detach", m.NearName, "--mode", "generic").succeeds()
	if m.generic() != 0 {
		t.Error("it was not detached")
	}
}

func TestADriverWithoutNativeModeIsServedInGenericModeAndThatIsSaid(t *testing.T) {
	m := newMachine(t)
	if err := m.Near.Conn.Add("bridge", "bridge0"); err != nil {
		t.Fatal(err)
	}
	object := kerneltest.ObjectFile(t, "pass")
	r := m.holdfast("attach", "bridge0", object, "-o", "json")
	if at := decode[hookStatus](r, "attachment"); at.Mode != xdp.Generic {
		t.Errorf("attached %+v", at)
	}
	r.says("no native mode", "slower", "bridge0")
	if err := m.Near.Conn.SetMaster(m.NearIndex, m.Near.Device(t, "bridge0").Index); err != nil {
		t.Fatal(err)
	}
	if masterExcludesPort(t, m) {
		m.holdfast("attach", m.NearName, object).fails(4, m.NearName+" is a port of bridge bridge0", "detach there")
		m.holds(0)
	}
	m.holdfast("detach", "bridge0").succeeds()
	m.holdfast("attach", m.NearName, object).succeeds()
	m.holdfast("attach", "bridge0", object, "--mode", "native").fails(6, "bridge0", "native", "mode generic")
}

// masterExcludesPort asks the kernel whether a port of a master that has a
// program can have one, too: before Linux 5.15 it can.
func masterExcludesPort(t *testing.T, m *machine) bool {
	t.Helper()
	p := kerneltest.Pass(t, "port", nil)
	err := m.Near.Do(func() error {
		link, err := kernel.LinkCreateXDP(p.FD(), m.NearIndex, 0)
		if err == nil {
			err = errors.Join(kernel.LinkDetach(link), link.Close())
		}
		return err
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	return err != nil
}

func TestAnMTUTooLargeIsNamedWithTheOneThatWouldDo(t *testing.T) {
	m := newMachine(t)
	if err := m.Far.Conn.SetMTU(m.FarIndex, 9000); err != nil {
		t.Fatal(err)
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass")).fails(6, "MTU to 3506 or less", "xdp.frags", "mode generic")
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--mode", "generic").succeeds()
}

func TestWhoWaitsTooLongForTheLockIsTold(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	m.attach("pass")
	lock, err := bpffs.LockDir(context.Background(), m.state, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"attach", m.NearName, object}, {"replace", m.NearName, object}, {"detach", m.NearName}, {"gc"},
	} {
		m.holdfast(append(args, "--lock-timeout", "20ms")...).fails(8, "lock timeout", "20ms", "--lock-timeout")
	}
	// Looking needs no lock.
	if found := m.status(); len(found) != 1 {
		t.Errorf("status is %+v", found)
	}
	lock.Unlock()
	m.holdfast("detach", m.NearName, "--lock-timeout", "20ms").succeeds()
}

func TestTheDefaultStateIsMadeWhenItIsNeeded(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	run := func(args ...string) result {
		cmd := m.command(args...)
		cmd.Env = append(cmd.Env, "HOLDFAST_BPFFS=")
		return m.finish(m.Near, cmd)
	}
	if err := os.RemoveAll("/run/holdfast"); err != nil {
		t.Fatal(err)
	}
	run("status").succeeds()
	run("gc").succeeds()
	if _, err := os.Stat("/run/holdfast"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("to look makes a state: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(arbiter.DefaultDir, unix.MNT_DETACH); os.RemoveAll("/run/holdfast") })
	at := decode[hookStatus](run("attach", m.NearName, object, "-o", "json"), "attachment")
	if info, err := os.Stat(arbiter.DefaultDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s is %v, %v", arbiter.DefaultDir, info, err)
	}
	m.holdfast("attach", m.NearName, object).fails(4, filepath.Join(arbiter.DefaultDir, at.Entry, "link"))
	// The flag wins over the environment.
	m.holdfast("detach", m.NearName, "--bpffs", arbiter.DefaultDir).succeeds()
	m.holds(0)
}

func TestResultsAreJSONWhateverIsLogged(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	loud := []string{"-o", "json", "--log-level", "debug"}
	for _, args := range [][]string{
		{"status"}, {"attach", m.NearName, object}, {"replace", m.NearName, object}, {"status", m.NearName},
		{"features"}, {"features", m.NearName}, {"gc", "--dry-run"}, {"gc"}, {"detach", m.NearName}, {"version"},
	} {
		r := m.holdfast(append(args, loud...)...).succeeds()
		if !json.Valid([]byte(r.out)) {
			t.Errorf("%s", r)
		}
	}
}

func TestAStrangerGetsASentenceThatSaysWhatIsMissing(t *testing.T) {
	m := newMachine(t)
	dir, err := os.MkdirTemp("/run", "objects")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	object := filepath.Join(dir, "pass.o")
	readable, err := os.ReadFile(kerneltest.ObjectFile(t, "pass"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, readable, 0o644); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret.o")
	if err := os.WriteFile(secret, readable, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) result { return m.finish(m.Near, m.asStranger(args...)) }
	at := m.attach("pass")

	run("attach", m.NearName, object).fails(5, "not permitted", "only root")
	run("replace", m.NearName, object).fails(5, "not permitted", "only root")
	run("run", m.NearName, object, "--", self, "child", "exit", "0").fails(5, "not permitted", "only root")
	run("attach", m.NearName, secret).fails(5, secret, "permission denied")
	run("detach", m.NearName).fails(5, "not permitted", "root")
	run("detach", m.NearName, "--foreign", "--expect", "any").fails(5, "not permitted", "root")
	run("gc").fails(5, "not permitted", "root")
	run("attach", m.NearName, object, "--netns", m.Near.Path()).fails(5, "not permitted")
	m.holds(at.Program.ID)

	// What the kernel shows to everybody.
	r := run("status", "-o", "json")
	found := decode[[]hookStatus](r, "status")
	if len(found) != 1 || found[0].Interface != m.NearName || found[0].Program.ID != at.Program.ID || found[0].Mode != xdp.Native ||
		found[0].Owner != nil || found[0].Held != xdp.HeldUnknown || found[0].Lifetime != arbiter.Unknown {
		t.Errorf("%s", r)
	}
	r.says("state", "root")
	run("status").succeeds()
	run("features").succeeds()
	run("version").succeeds()
}
