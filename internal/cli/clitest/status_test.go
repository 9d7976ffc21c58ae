package clitest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestStatusShowsEveryKindOfAttachment(t *testing.T) {
	m := newMachine(t)
	for i, name := range []string{"shared0", "foreign0", "held0", "empty0"} {
		if err := m.Near.Conn.AddVethAt(1000+2*i, name, 1001+2*i, name+"p"); err != nil {
			t.Fatal(err)
		}
	}
	object := kerneltest.ObjectFile(t, "pass")
	m.attach("filter", "--name", "mine")
	m.holdfast("attach", "shared0", object, "--shared", "--single", "--name", "ours", "--mode", "generic").succeeds()
	theirs := kerneltest.Pass(t, "theirs", nil)
	if err := m.Near.Conn.SetXDP(1002, theirs.FD(), 0); err != nil {
		t.Fatal(err)
	}
	p := m.start(m.command("run", "held0", object, "--", self, "child", "until killed"))
	p.pid()

	type row struct {
		name     string
		mode     xdp.Mode
		program  string
		held     xdp.Holding
		lifetime arbiter.Lifetime
		holders  int
		entry    bool
	}
	got := map[string]row{}
	for _, s := range m.status() {
		got[s.Interface] = row{s.Name, s.Mode, s.Program.Name, s.Held, s.Lifetime, len(s.Holders), s.Entry != ""}
		if s.Since.IsZero() || s.SinceLoad == (s.Entry != "") || s.Program.Tag == "" || (s.Held == xdp.HeldByLink) != (s.LinkID != 0) {
			t.Errorf("%+v is not all", s)
		}
	}
	want := map[string]row{
		m.NearName: {"mine", xdp.Native, "filter", xdp.HeldByLink, arbiter.Permanent, 0, true},
		"shared0":  {"ours", xdp.Generic, "xdp_pass", xdp.HeldByNetlink, arbiter.Permanent, 0, true},
		"foreign0": {"", xdp.Native, "theirs", xdp.HeldByNetlink, arbiter.Permanent, 0, false},
		"held0":    {"", xdp.Native, "xdp_pass", xdp.HeldByLink, arbiter.Held, 1, false},
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: %+v, want %+v", name, got[name], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("status shows %d interfaces, want %d", len(got), len(want))
	}

	if found := m.status("held0", "empty0"); len(found) != 1 || found[0].Interface != "held0" {
		t.Errorf("of held0 and empty0 there is %+v", found)
	}
	r := m.holdfast("status").succeeds()
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 5 || strings.Fields(lines[0])[0] != "INTERFACE" || !slices.IsSorted(lines[1:]) {
		t.Errorf("%s", r)
	}
	r = m.holdfast("status", "empty0").succeeds()
	if r.out != "" {
		t.Errorf("%s", r)
	}
	r.says("no XDP program is attached")
}

func TestStatusFindsAllNamespaces(t *testing.T) {
	m := newMachine(t)
	m.Near.Name(t, "blue")
	// One that only a process is in, with an interface of the same index.
	other := kerneltest.NewNetNS(t)
	if err := other.Conn.AddVethAt(m.NearIndex, "other0", m.NearIndex+1, "other1"); err != nil {
		t.Fatal(err)
	}
	inhabitant := m.command("child", "until killed")
	m2 := &machine{&kerneltest.Veth{Near: other, NearName: "other0"}, t, m.state, m.pins}
	pid := m2.start(inhabitant).pid()
	m.Far.Name(t, itoa(pid)) // a name that is another namespace's pid
	object := kerneltest.ObjectFile(t, "pass")
	first := m.attach("filter", "--name", "first")
	second := decode[arbiter.Status](m2.holdfast("attach", "other0", object, "--name", "second", "-o", "json"), "attachment")
	if first.Index != second.Index || first.NamespaceID == second.NamespaceID {
		t.Errorf("attached %+v and %+v, want the same index in two namespaces", first, second)
	}

	here := kerneltest.NewNetNS(t)
	found := decode[[]arbiter.Status](m.finish(here, m.command("status", "--all-netns", "-o", "json")), "status")
	if len(found) != 2 {
		t.Fatalf("status is %+v", found)
	}
	for _, s := range found {
		switch s.Name {
		case "first":
			if s.Namespace != "blue" || s.Interface != m.NearName || s.LinkID != first.LinkID || s.Lifetime != arbiter.Permanent {
				t.Errorf("the first is %+v", s)
			}
		case "second":
			if s.Namespace != "/proc/"+itoa(pid)+"/ns/net" || s.Interface != "other0" || s.LinkID != second.LinkID || s.Lifetime != arbiter.Permanent {
				t.Errorf("the second is %+v, want the namespace of process %d", s, pid)
			}
		default:
			t.Errorf("status shows %+v", s)
		}
	}
	r := m.finish(here, m.command("status", "--all-netns")).succeeds()
	if !strings.HasPrefix(r.out, "NETNS ") || !strings.Contains(r.out, "\nblue ") {
		t.Errorf("%s", r)
	}
	// Each is detached where it is, and nothing else.
	m2.holdfast("detach", "other0").succeeds()
	m.holds(first.Program.ID)
	m.holdfast("detach", m.NearName).succeeds()
	m.holds(0)
}

func TestStatusLeavesOutWhatTheCallerMayNotSee(t *testing.T) {
	m := newMachine(t)
	cmd := m.command("status", "--all-netns")
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	if r := m.finish(m.Near, cmd).succeeds(); strings.Contains(r.err, "can't be looked into") {
		t.Errorf("%s\nthose of others' processes among them", r)
	}
}

func TestAnAttachmentGoesWithItsInterfaceAndGCRemovesTheRest(t *testing.T) {
	m := newMachine(t)
	dir := kerneltest.BPFFS(t)
	pin := filepath.Join(dir, "theirs")
	at := m.attach("tailcall", "--program", "enter", "--name", "gone", "--persist-as", pin)
	if err := m.Near.Conn.Delete(m.NearIndex); err != nil {
		t.Fatal(err)
	}
	var found []arbiter.Status
	if !kerneltest.Eventually(func() bool {
		found = m.status()
		return len(found) == 1 && found[0].Lifetime == arbiter.Defunct
	}) {
		t.Fatalf("status is %+v, want a defunct link", found)
	}
	if s := found[0]; s.Name != "gone" || s.Interface != m.NearName || s.LinkID != at.LinkID || s.Entry != at.Entry {
		t.Errorf("status is %+v", s)
	}
	if r := m.holdfast("status").succeeds(); !strings.Contains(r.out, "defunct") {
		t.Errorf("%s", r)
	}

	type collected struct {
		DryRun bool `json:"dry_run"`
		Stale  []arbiter.Stale
	}
	dry := decode[collected](m.holdfast("gc", "--dry-run", "-o", "json"), "gc")
	if !dry.DryRun || len(dry.Stale) != 1 || dry.Stale[0].Entry != at.Entry || dry.Stale[0].Name != "gone" || dry.Stale[0].Why == "" {
		t.Errorf("a dry gc would remove %+v", dry)
	}
	if len(m.status()) != 1 {
		t.Error("a dry gc removed it")
	}
	if wet := decode[collected](m.holdfast("gc", "-o", "json"), "gc"); wet.DryRun || len(wet.Stale) != 1 {
		t.Errorf("gc removed %+v", wet)
	}
	if found := m.status(); len(found) != 0 {
		t.Errorf("after gc status is %+v", found)
	}
	if left := append(entries(t, m.state), entries(t, dir)...); len(left) > 0 {
		t.Errorf("gc left %v", left)
	}
	if again := decode[collected](m.holdfast("gc", "-o", "json"), "gc"); again.Stale == nil || len(again.Stale) != 0 {
		t.Errorf("gc again removed %+v", again)
	}
}

func TestGCLeavesWhatIsAttached(t *testing.T) {
	m := newMachine(t)
	at := m.attach("pass")
	r := m.holdfast("gc").succeeds()
	if r.out != "" {
		t.Errorf("%s", r)
	}
	m.holds(at.Program.ID)
}

// takeAway detaches the link by force, as another root can.
func (m *machine) takeAway(link uint32) {
	m.t.Helper()
	fd, err := kernel.LinkByID(link)
	if err != nil {
		m.t.Fatal(err)
	}
	defer fd.Close()
	if err := kernel.LinkDetach(fd); err != nil {
		m.t.Fatal(err)
	}
	m.holds(0)
}

func TestWhoseAttachmentHasEndedIsToldSoOnce(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	says := []string{"gone", `"guard", by uid 0`, "somebody detached the link by force"}
	m.takeAway(m.attach("pass", "--name", "guard").LinkID)
	m.holdfast("replace", m.NearName, object).fails(3, append(says, "attach anew")...)
	m.holdfast("replace", m.NearName, object).fails(7, "not attached")
	m.takeAway(m.attach("pass", "--name", "guard").LinkID)
	m.holdfast("detach", m.NearName).fails(3, append(says, "nothing left to detach")...)
	m.holdfast("detach", m.NearName).fails(7, "not attached")

	m.attach("pass", "--name", "guard", "--shared", "--single")
	if err := m.Near.Conn.SetXDP(m.NearIndex, -1, 0); err != nil {
		t.Fatal(err)
	}
	m.holdfast("detach", m.NearName).fails(3, "gone", `"guard"`, "no longer attached")
}

func TestADefunctLinkOfOthersIsShownWithWhoKeepsIt(t *testing.T) {
	m := newMachine(t)
	p := m.start(m.command(m.run("until killed")...))
	p.pid()
	link := m.status()[0].LinkID
	m.takeAway(link)
	found := m.status()
	if len(found) != 1 || found[0].Lifetime != arbiter.Defunct || found[0].LinkID != link || found[0].Entry != "" ||
		len(found[0].Holders) != 1 || found[0].Holders[0].PID != p.PID() {
		t.Errorf("status is %+v, want the defunct link %d", found, link)
	}
}

func TestAnAttachmentThatAnotherRootTookAwayIsDefunct(t *testing.T) {
	m := newMachine(t)
	at := m.attach("pass")
	m.takeAway(at.LinkID)
	if found := m.status(); len(found) != 1 || found[0].Lifetime != arbiter.Defunct {
		t.Errorf("status is %+v, want a defunct link", found)
	}
	// The hook is free, and a new attachment takes the old one's place.
	again := m.attach("pass")
	m.holds(again.Program.ID)
	if found := m.status(); len(found) != 1 || found[0].Lifetime != arbiter.Permanent || found[0].LinkID == at.LinkID {
		t.Errorf("status is %+v", found)
	}
}

func TestAnAttachmentFollowsItsInterface(t *testing.T) {
	m := newMachine(t)
	at := m.attach("pass", "--name", "traveller")
	there := kerneltest.NewNetNS(t)
	if err := m.Near.Conn.Move(m.NearIndex, there.FD()); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) result { return m.finish(there, m.command(args...)) }
	found := decode[[]arbiter.Status](run("status", "-o", "json"), "status")
	if len(found) != 1 || found[0].Name != "traveller" || found[0].LinkID != at.LinkID || found[0].Lifetime != arbiter.Permanent {
		t.Errorf("status is %+v", found)
	}
	run("attach", m.NearName, kerneltest.ObjectFile(t, "pass")).fails(4, `"traveller"`)
	run("replace", m.NearName, kerneltest.ObjectFile(t, "pass")).succeeds()
	run("detach", m.NearName).succeeds()
	if p := there.Device(t, m.NearName).XDP.Native; p != 0 {
		t.Errorf("program %d is still attached", p)
	}
}

func TestFeaturesAreAnsweredWithReasons(t *testing.T) {
	m := newMachine(t)
	kernelHas := decode[struct{ Features []features.Feature }](m.holdfast("features", "-o", "json"), "features").Features
	for _, name := range []string{features.Link, features.Frags, features.Freplace} {
		if f := features.Find(kernelHas, name); f == nil || f.Supported == features.No && f.Reason == "" {
			t.Errorf("%s is answered by %+v", name, f)
		}
	}
	if f := features.Find(kernelHas, features.Link); f.Supported != features.Yes || f.How != features.Tried {
		t.Errorf("links are %+v", f)
	}
	device := decode[features.Device](m.holdfast("features", m.NearName, "-o", "json"), "features")
	if device.Interface.Name != m.NearName || device.Interface.Index != m.NearIndex || device.MaxMTU == 0 {
		t.Errorf("the interface is %+v", device)
	}
	for _, name := range []string{features.Native, features.Generic} {
		if f := features.Find(device.Features, name); f == nil || f.Supported != features.Yes {
			t.Errorf("%s is answered by %+v", name, f)
		}
	}
	m.holds(0)
	r := m.holdfast("features", m.NearName).succeeds()
	if !strings.HasPrefix(r.out, "FEATURE ") || strings.Count(r.out, "\n") != len(device.Features)+1 {
		t.Errorf("%s", r)
	}
}

func TestATableFitsTheTerminalItIsShownOn(t *testing.T) {
	m := newMachine(t)
	m.attach("filter", "--name", strings.Repeat("long ", 12))
	control, terminal := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(control.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	cmd := m.command("status")
	cmd.Stdout = terminal
	m.Near.In(t, cmd.Run)
	// The kernel hands over what was written to a terminal piece by piece.
	shown, buffer := "", make([]byte, 4096)
	for strings.Count(shown, "\n") < 2 {
		n, err := control.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		shown += string(buffer[:n])
	}
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(shown, "\r", "")), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], "…") {
		t.Errorf("the terminal shows %q", lines)
	}
	for _, line := range lines {
		if columns := len([]rune(line)); columns > 80 {
			t.Errorf("a line has %d columns: %s", columns, line)
		}
	}
}

// openTerminal makes a terminal of the test's own.
func openTerminal(t *testing.T) (control, terminal *os.File) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("devpts", dir, "devpts", 0, "newinstance,ptmxmode=0600"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	control, err := os.OpenFile(filepath.Join(dir, "ptmx"), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	if err := unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(filepath.Join(dir, itoa(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return control, terminal
}
