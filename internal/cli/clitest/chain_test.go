package clitest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// hookStatus is a hook with its chain, as it is printed.
type hookStatus struct {
	arbiter.Status
	Chain *chainStatus `json:"chain"`
}

type chainStatus struct {
	Engine string
	// Of owned hooks.
	Generation        uint64
	Exclusive, Locked bool

	Version int
	MadeBy  string `json:"made_by"`
	Members []memberStatus
	Problem string
}

type memberStatus struct {
	Slot      int
	Name      string
	Priority  uint32
	ProceedOn []string `json:"proceed_on"`
	Program   xdp.Program
	// Of owned hooks.
	Generation uint64
	Lifetime   arbiter.Lifetime
	Ended      bool
	LinkID     uint32 `json:"link_id"`
	Owner      arbiter.Owner
}

// String is the members in their order, with their priorities and actions.
func (c *chainStatus) String() string {
	if c == nil {
		return "no chain"
	}
	var s []string
	for _, m := range c.Members {
		var actions []string
		for _, a := range m.ProceedOn {
			actions = append(actions, strings.ToLower(strings.TrimPrefix(a, "XDP_")))
		}
		s = append(s, fmt.Sprintf("%s/%d/%s", m.Name, m.Priority, strings.Join(actions, "+")))
	}
	return strings.Join(s, " ")
}

// id is the id of the member's program.
func (m *machine) id(member string) string {
	m.t.Helper()
	for _, c := range m.chain().Members {
		if c.Name == member {
			return itoa(c.Program.ID)
		}
	}
	m.t.Fatalf("the chain has no %s", member)
	return ""
}

// chain is the chain at Near as `holdfast status` shows it.
func (m *machine) chain() *chainStatus {
	m.t.Helper()
	found := decode[[]hookStatus](m.holdfast("status", m.NearName, "-o", "json"), "status")
	if len(found) != 1 {
		return nil
	}
	return found[0].Chain
}

// wants fails the test unless the chain at Near is this, and nothing is wrong
// with it.
func (m *machine) wants(chain string) {
	m.t.Helper()
	c := m.chain()
	if c.String() != chain || c != nil && c.Problem != "" {
		m.t.Errorf("the chain is %s (%+v), want %s", c, c, chain)
	}
}

// hasFreplace tells whether chains can be had on this kernel.
func hasFreplace(t testing.TB) bool {
	t.Helper()
	found, err := features.Kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return features.Find(found, features.Freplace).Supported == features.Yes
}

func needFreplace(t testing.TB) {
	t.Helper()
	if !hasFreplace(t) {
		t.Skip("this kernel takes no extensions (BPF_PROG_TYPE_EXT)")
	}
}

func TestMembersOfASharedHookAreAddedPlacedReplacedAndRemoved(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	filter, passes := kerneltest.ObjectFile(t, "filter"), kerneltest.ObjectFile(t, "pass")
	drops, asks := kerneltest.ObjectFile(t, "drop"), kerneltest.ObjectFile(t, "runconfig")

	first := decode[hookStatus](m.holdfast("attach", m.NearName, filter, "--shared", "--set", "drop_port=53", "-o", "json"), "attachment")
	m.holds(first.Program.ID)
	if first.Held != xdp.HeldByNetlink || first.Lifetime != arbiter.Permanent || first.Chain.MadeBy != "holdfast" || first.Chain.String() != "filter/50/pass" {
		t.Errorf("attached %+v with %+v", first, first.Chain)
	}
	// Two at once, one of which says itself where it wants to run.
	r := m.holdfast("attach", m.NearName, passes, asks, "--shared").succeeds()
	if want := fmt.Sprintf("attached %s: a chain of 3 members, by Holdfast, mode native, dispatcher %d, shared (netlink), permanent\n", m.NearName, m.native()); !strings.HasPrefix(r.out, want) || strings.Count(r.out, "\n") != 4 || r.err != "" {
		t.Errorf("%s\nwant %s and the members", r, want)
	}
	m.wants("runconfig/10/drop+pass filter/50/pass xdp_pass/50/pass")
	if m.action(53) != drop || m.action(54) != pass {
		t.Errorf("port 53: %d, port 54: %d", m.action(53), m.action(54))
	}

	m.holdfast("attach", m.NearName, drops, "--shared", "--after", "filter", "--proceed-on", "drop,tx").succeeds()
	m.wants("runconfig/10/drop+pass filter/50/pass xdp_drop/50/drop+tx xdp_pass/50/pass")
	m.holdfast("set", m.NearName, "xdp_drop", "--priority", "70", "--proceed-on", "").succeeds()
	m.wants("runconfig/10/drop+pass filter/50/pass xdp_pass/50/pass xdp_drop/70/")
	if m.action(54) != drop {
		t.Errorf("port 54: %d", m.action(54))
	}
	m.holdfast("set", m.NearName, m.id("xdp_drop"), "--before", "runconfig").succeeds()
	m.wants("xdp_drop/0/ runconfig/10/drop+pass filter/50/pass xdp_pass/50/pass")

	before := m.id("filter")
	m.holdfast("replace", m.NearName, "filter", filter, "--set", "drop_port=99").succeeds()
	m.wants("xdp_drop/0/ runconfig/10/drop+pass filter/50/pass xdp_pass/50/pass")
	if m.id("filter") == before {
		t.Error("filter was not replaced")
	}

	members := "xdp_drop (" + m.id("xdp_drop") + "), runconfig ("
	m.holdfast("detach", m.NearName).fails(2, "chain of 4 members", members, "--all")
	m.holdfast("replace", m.NearName, passes).fails(2, "chain of 4 members", members, "name the one")
	m.holdfast("detach", m.NearName, "nobody").fails(7, `"nobody"`, "filter")
	m.holdfast("detach", m.NearName, "xdp_drop", "nobody").fails(7, `"nobody"`)
	m.holdfast("set", m.NearName, "nobody", "--priority", "1").fails(7, `"nobody"`)
	m.holdfast("set", m.NearName, "filter", "--before", "nobody").fails(7, `"nobody"`)
	m.holdfast("attach", m.NearName, drops, "--shared", "--before", "nobody").fails(7, `"nobody"`)
	m.holdfast("replace", m.NearName, "nobody", passes).fails(7, `"nobody"`)
	m.holdfast("detach", m.NearName, "--all", "--expect", "4000000000").fails(4, "expected program 4000000000")
	m.wants("xdp_drop/0/ runconfig/10/drop+pass filter/50/pass xdp_pass/50/pass")

	gone := decode[struct {
		Interface string
		Members   []memberStatus
		Chain     *chainStatus
	}](m.holdfast("detach", m.NearName, "xdp_drop", m.id("runconfig"), "-o", "json"), "detached")
	if gone.Interface != m.NearName || len(gone.Members) != 2 || gone.Members[0].Name != "xdp_drop" || gone.Chain.String() != "filter/50/pass xdp_pass/50/pass" {
		t.Errorf("detached %+v, and left is %s", gone, gone.Chain)
	}
	if m.action(53) != pass || m.action(99) != drop {
		t.Errorf("port 53: %d, port 99: %d", m.action(53), m.action(99))
	}
	m.holdfast("detach", m.NearName, "filter").succeeds()
	// The only one is meant where none is named.
	m.holdfast("replace", m.NearName, drops).succeeds()
	m.wants("xdp_drop/50/pass")
	if r := m.holdfast("detach", m.NearName).succeeds(); !strings.HasPrefix(r.out, "detached "+m.NearName+": xdp_drop (program ") {
		t.Errorf("%s", r)
	}
	m.holds(0)
	if left := entries(t, filepath.Join(m.pins, "xdp")); len(left) > 0 {
		t.Errorf("left in the bpffs: %v", left)
	}
}

func TestObjectsThatArePlacedBesideAMemberKeepTheirOrder(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared").succeeds()
	two := []string{kerneltest.ObjectFile(t, "runconfig"), kerneltest.ObjectFile(t, "filter")}
	m.holdfast(append([]string{"attach", m.NearName, "--shared", "--after", "xdp_pass"}, two...)...).succeeds()
	m.wants("xdp_pass/50/pass runconfig/60/drop+pass filter/70/pass")
	m.holdfast("detach", m.NearName, "runconfig", "filter").succeeds()
	m.holdfast(append([]string{"attach", m.NearName, "--shared", "--before", "xdp_pass"}, two...)...).succeeds()
	c := m.chain()
	if len(c.Members) != 3 || c.Members[0].Name != "runconfig" || c.Members[1].Name != "filter" || c.Members[2].Name != "xdp_pass" {
		t.Errorf("the chain is %s", c)
	}
	if r := m.holdfast("detach", m.NearName, "--all").succeeds(); strings.Count(r.out, "program") != 3 {
		t.Errorf("%s", r)
	}
	m.holds(0)
}

func TestAnEleventhMemberIsRefused(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	object := kerneltest.ObjectFile(t, "pass")
	attach := []string{"attach", m.NearName, "--shared"}
	m.holdfast(append(attach, slices.Repeat([]string{object}, 10)...)...).succeeds()
	m.holdfast(append(attach, object)...).fails(6, "11 members", "10 slots", "owned hook")
	m.holdfast("detach", m.NearName, "xdp_pass").fails(7, `several are called "xdp_pass"`, m.id("xdp_pass"))
	m.holdfast("detach", m.NearName, m.id("xdp_pass")).succeeds()
	if n := len(m.chain().Members); n != 9 {
		t.Errorf("the chain has %d members, want 9", n)
	}
	m.holdfast("detach", m.NearName, "--all").succeeds()
}

func TestStatusShowsTheMembersBelowTheirHook(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	if err := m.Near.Conn.AddVethAt(1000, "single0", 1001, "single0p"); err != nil {
		t.Fatal(err)
	}
	m.holdfast("xdp-loader", "load", m.NearName, kerneltest.ObjectFile(t, "pass"), "-P", "7", "-A", "XDP_PASS,XDP_TX").succeeds()
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "drop"), "--shared", "--proceed-on", "").succeeds()
	m.holdfast("attach", "single0", kerneltest.ObjectFile(t, "pass"), "--shared", "--single").succeeds()
	r := m.holdfast("status").succeeds()
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 5 {
		t.Fatalf("%s", r)
	}
	for i, says := range []string{
		"INTERFACE ",
		m.NearName + " ",
		"  1.  xdp_pass  program " + m.id("xdp_pass") + "  priority 7   goes on after XDP_PASS,XDP_TX",
		"  2.  xdp_drop  program " + m.id("xdp_drop") + "  priority 50  ends the chain",
		"single0 ",
	} {
		if !strings.HasPrefix(lines[i], says) {
			t.Errorf("line %d of the status is %q, want %q", i, lines[i], says)
		}
	}
	if !strings.HasSuffix(lines[1], "a chain of 2 members, by Holdfast") {
		t.Errorf("%s", r)
	}

	// Without its pins nobody can tell the members.
	dir := filepath.Join(m.pins, "xdp", fmt.Sprintf("dispatch-%d-%d", m.NearIndex, m.native()))
	if err := os.Remove(filepath.Join(dir, "prog1-prog")); err != nil {
		t.Fatal(err)
	}
	if c := m.chain(); c == nil || len(c.Members) != 0 || !strings.Contains(c.Problem, "prog1-prog is missing") {
		t.Errorf("the chain is %+v", c)
	}
	if r := m.holdfast("status").succeeds(); !strings.Contains(r.out, "\n  problem: ") {
		t.Errorf("%s", r)
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared").fails(4, "the chain can't be changed", "prog1-prog is missing", "detached as a whole")
	m.holdfast("detach", m.NearName).fails(2, "members can't be told", "prog1-prog is missing", "--all")
	m.holdfast("detach", m.NearName, "--all").succeeds()
	m.holds(0)
	if left := entries(t, filepath.Join(m.pins, "xdp")); len(left) > 0 {
		t.Errorf("left in the bpffs: %v", left)
	}
}

func TestAChainAndAnOwnerAreInEachOthersWay(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	object := kerneltest.ObjectFile(t, "pass")
	owned := m.attach("filter", "--name", "mine")
	m.holdfast("attach", m.NearName, object, "--shared").fails(4,
		"the hook is owned", fmt.Sprintf(`program %d "filter"`, owned.Program.ID), fmt.Sprintf("link %d", owned.LinkID), `"mine"`)
	m.holds(owned.Program.ID)
	m.holdfast("detach", m.NearName, "filter").fails(7, "no such member", `"filter"`, `"mine"`)
	m.holdfast("detach", m.NearName).succeeds()

	m.holdfast("attach", m.NearName, object, "--shared").succeeds()
	at := m.native()
	rival := fmt.Sprintf(`program %d "xdp_dispatcher"`, at)
	m.holdfast("attach", m.NearName, object).fails(4, rival, "by netlink")
	m.holdfast("attach", m.NearName, object, "--shared", "--single").fails(4, rival)
	m.holdfast("run", m.NearName, object, "--", self, "child", "exit", "0").fails(4, rival)
	m.holdfast("attach", m.NearName, object, "--shared", "--mode", "generic").fails(4, rival, "another mode")
	m.holds(at)
	m.holdfast("detach", m.NearName, "--foreign", "--expect", itoa(at)).succeeds()
	m.holds(0)
	if left := entries(t, filepath.Join(m.pins, "xdp")); len(left) > 0 {
		t.Errorf("left in the bpffs: %v", left)
	}
}

func TestASingleProgramIsTakenIntoTheChainWhenItsObjectIsGiven(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	filter, passes := kerneltest.ObjectFile(t, "filter"), kerneltest.ObjectFile(t, "pass")
	single := m.attach("filter", "--shared", "--single", "--name", "ours", "--set", "drop_port=53")
	rival := fmt.Sprintf(`program %d "filter"`, single.Program.ID)
	m.holdfast("attach", m.NearName, passes, "--shared").fails(4, rival, `"ours"`, "--adopt")
	m.holdfast("attach", m.NearName, passes, "--shared", "--adopt").fails(4, rival, passes, "the object that it comes from")
	m.holds(single.Program.ID)
	m.holdfast("attach", m.NearName, passes, filter, "--shared", "--adopt", "--set", "drop_port=53").fails(2, passes, "drop_port")
	m.holdfast("attach", m.NearName, passes, filter, "--shared", "--adopt").succeeds()
	m.wants("filter/50/pass xdp_pass/50/pass")
	// It is a member among others now, and what Holdfast knew of it is void.
	if found := m.status(m.NearName); len(found) != 1 || found[0].Name != "" || found[0].Owner != nil {
		t.Errorf("status is %+v", found)
	}
	m.holdfast("gc").succeeds()
	if left := entries(t, m.state); len(left) > 0 {
		t.Errorf("left in the state: %v", left)
	}
	m.holdfast("detach", m.NearName, "--all").succeeds()

	// Nothing to adopt is no mistake.
	m.holdfast("attach", m.NearName, passes, "--shared", "--adopt").succeeds()
	m.holdfast("attach", m.NearName, filter, "--shared", "--adopt").succeeds()
	m.wants("filter/50/pass xdp_pass/50/pass")
}

func TestWhereThereIsNoFreplaceOneProgramIsAttachedAlone(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	r := m.holdfast("attach", m.NearName, object, "--shared", "-o", "json")
	at := decode[hookStatus](r, "attachment")
	if hasFreplace(t) {
		if at.Chain.String() != "xdp_pass/50/pass" || r.err != "" {
			t.Errorf("%s", r)
		}
		return
	}
	r.says("attached alone", "--single", "extensions (BPF_PROG_TYPE_EXT)")
	if at.Chain != nil || at.Held != xdp.HeldByNetlink || at.Name != "xdp_pass" || at.Entry == "" || at.Program.ID != m.native() {
		t.Errorf("attached %+v", at)
	}
	m.holdfast("attach", m.NearName, object, object, "--shared").fails(4, "a single program has the hook")
	m.holdfast("detach", m.NearName).succeeds()
	m.holds(0)
	m.holdfast("attach", m.NearName, object, object, "--shared").fails(6, "extensions (BPF_PROG_TYPE_EXT)", "attach one program alone")
	m.holds(0)
	if left := append(entries(t, m.state), entries(t, m.pins)...); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWithoutABPFFSItIsSaidHowToMountOne(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	m.pins = t.TempDir()
	if !hasFreplace(t) {
		// No bpffs would help.
		m.holdfast("attach", m.NearName, object, "--shared").succeeds().says("attached alone")
		return
	}
	m.holdfast("attach", m.NearName, object, "--shared").fails(7, "no bpffs is mounted at "+m.pins, "mount -t bpf bpf "+m.pins, "LIBXDP_BPFFS_AUTOMOUNT=1", "--libxdp-bpffs")
	// A flag wins over the environment.
	m.holdfast("attach", m.NearName, object, "--shared", "--libxdp-bpffs", m.state).succeeds()
	m.holdfast("detach", m.NearName, "--libxdp-bpffs", m.state).succeeds()
	m.holds(0)

	cmd := m.command("attach", m.NearName, object, "--shared")
	cmd.Env = append(cmd.Env, "LIBXDP_BPFFS_AUTOMOUNT=1")
	t.Cleanup(func() { unix.Unmount(m.pins, unix.MNT_DETACH) })
	m.finish(m.Near, cmd).succeeds()
	if !bpffs.Is(m.pins) {
		t.Error("no bpffs was mounted")
	}
	m.wants("xdp_pass/50/pass")
	m.holdfast("detach", m.NearName).succeeds()
}

func TestTheMachinesBPFFSIsFoundWhereAMountNamespaceHidesIt(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	if !bpffs.Is("/sys/fs/bpf") {
		if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount("/sys/fs/bpf", unix.MNT_DETACH) })
	}
	// As `ip netns exec` does it.
	hidden := func(args ...string) result {
		t.Helper()
		var r result
		done := make(chan error, 1)
		go func() {
			// The thread ends with the goroutine, for it can't be brought back.
			runtime.LockOSThread()
			err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""), unix.Unmount("/sys/fs/bpf", unix.MNT_DETACH))
			if err == nil && bpffs.Is("/sys/fs/bpf") {
				err = errors.New("it is not hidden")
			}
			if err == nil {
				cmd := m.command(append(args, "--netns", m.Near.Path())...)
				cmd.Env = append(cmd.Env, "LIBXDP_BPFFS=")
				r = m.collect(cmd.Run, cmd)
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return r
	}
	hidden("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared").succeeds()
	m.pins = "/sys/fs/bpf"
	m.wants("xdp_pass/50/pass")
	hidden("detach", m.NearName).succeeds()
	if left := entries(t, "/sys/fs/bpf/xdp"); len(left) > 0 {
		t.Errorf("left in the bpffs: %v", left)
	}
}

func TestGCRemovesPinsThatNoChainUsesAndNoOthers(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared").succeeds()
	used := filepath.Join(m.pins, "xdp", fmt.Sprintf("dispatch-%d-%d", m.NearIndex, m.native()))
	left := filepath.Join(m.pins, "xdp", "dispatch-4000-4000000000")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	p := kerneltest.Pass(t, "left", nil)
	if err := kernel.Pin(kernel.FD(p.FD()), filepath.Join(left, "prog0-prog")); err != nil {
		t.Fatal(err)
	}
	type collected struct {
		Pins []struct {
			Path    string
			Removed bool
			Reason  string
		}
	}
	dry := decode[collected](m.holdfast("gc", "--dry-run", "-o", "json"), "gc").Pins
	if len(dry) != 1 || dry[0].Path != left || !dry[0].Removed || dry[0].Reason == "" {
		t.Errorf("a dry gc would remove %+v", dry)
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("a dry gc: %v", err)
	}
	// From another namespace, the chain's pins are another's.
	here := kerneltest.NewNetNS(t)
	m.Near.Name(t, "blue")
	wet := decode[collected](m.finish(here, m.command("gc", "-o", "json")), "gc").Pins
	kept := slices.IndexFunc(wet, func(p struct {
		Path    string
		Removed bool
		Reason  string
	}) bool {
		return p.Path == used && !p.Removed && strings.Contains(p.Reason, m.NearName) && strings.Contains(p.Reason, "blue")
	})
	if len(wet) != 2 || kept < 0 || wet[1-kept].Path != left || !wet[1-kept].Removed {
		t.Errorf("gc elsewhere did %+v", wet)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gc left it: %v", err)
	}
	m.wants("xdp_pass/50/pass")
	if again := decode[collected](m.holdfast("gc", "-o", "json"), "gc").Pins; again == nil || len(again) != 0 {
		t.Errorf("gc again did %+v", again)
	}
}

func TestWhoWaitsTooLongForTheLockOnThePinsIsTold(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	object := kerneltest.ObjectFile(t, "pass")
	m.holdfast("attach", m.NearName, object, "--shared").succeeds()
	lock, err := bpffs.LockDir(context.Background(), filepath.Join(m.pins, "xdp"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"attach", m.NearName, object, "--shared"}, {"detach", m.NearName, "xdp_pass"}, {"replace", m.NearName, object},
		{"set", m.NearName, "xdp_pass", "--priority", "1"},
	} {
		m.holdfast(append(args, "--lock-timeout", "20ms")...).fails(8, "lock timeout", m.pins)
	}
	lock.Unlock()
	m.wants("xdp_pass/50/pass")
}

func TestAStrangerMayNotChangeAChain(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared").succeeds()
	run := func(args ...string) result { return m.finish(m.Near, m.asStranger(args...)) }
	run("detach", m.NearName, "xdp_pass").fails(5, "not permitted", "only root")
	run("detach", m.NearName).fails(5, "not permitted", "root")
	run("set", m.NearName, "xdp_pass", "--priority", "1").fails(5, "not permitted")
	run("status").succeeds()
	m.wants("xdp_pass/50/pass")
}
