package inspecttest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const letGo = "whoever holds the link must let go first"

func TestALinkOfAProcessIsTheProcesss(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	link := attach(t, v, "foreign", 0)
	id := linkID(t, link)
	p, pid := start(t, link, kerneltest.Command("hold"))
	f := called(t, look(t), "foreign")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.ByProcess)
	wantProcess(t, f, pid)
	if f.LinkID != id || f.Since.IsZero() || !f.SinceLoad {
		t.Errorf("its link is %d, since %s, want link %d, since it was loaded", f.LinkID, f.Since, id)
	}
	who := fmt.Sprintf("process %d", pid)
	wantRefused(t, f.Would.Own, letGo, who)
	wantRefused(t, f.Would.Share, letGo, who)
	wantRefused(t, f.Would.Replace, letGo, who)
	wantRefused(t, f.Would.Detach, letGo, who)
	// That it was looked at keeps it no longer.
	p.Kill()
	if !kerneltest.Eventually(func() bool { return v.Near.Device(t, v.NearName).XDP == rtnl.XDP{} }) {
		t.Error("it stays attached")
	}
}

func TestALinkWithANameIsThePins(t *testing.T) {
	kerneltest.NoLeaks(t)
	v, dir := kerneltest.NewVeth(t), kerneltest.BPFFS(t)
	link := attach(t, v, "pinned", 0)
	path := filepath.Join(dir, "deeper", "pin")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := kernel.Pin(link, path); err != nil {
		t.Fatal(err)
	}
	id := linkID(t, link)
	link.Close()
	f := called(t, look(t), "pinned")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.ByPin)
	if len(f.By.Pins) != 1 || f.By.Pins[0].Path != path || f.By.Pins[0].PID != 0 || f.By.Pins[0].Since.IsZero() {
		t.Errorf("its pins are %+v, want %s", f.By.Pins, path)
	}
	wantRefused(t, f.Would.Own, letGo, "pin "+path)
	if got, program, err := inspect.Pinned(path); err != nil || got != id || program != 0 {
		t.Errorf("pinned is link %d, program %d (%v), want link %d", got, program, err, id)
	}
}

func TestAPinInABPFFSThatOnlyAnotherProcessSeesIsFound(t *testing.T) {
	kerneltest.NoLeaks(t)
	v, dir := kerneltest.NewVeth(t), t.TempDir()
	cmd := kerneltest.Command("pin privately", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	_, pid := start(t, attach(t, v, "private", 0), cmd)
	f := called(t, look(t), "private")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.ByPin)
	path := filepath.Join(dir, "private")
	if len(f.By.Pins) != 1 || f.By.Pins[0].Path != path || f.By.Pins[0].PID != pid {
		t.Fatalf("its pins are %+v, want %s as process %d sees it", f.By.Pins, path, pid)
	}
	if _, err := os.Lstat(f.By.Pins[0].Reach); err != nil {
		t.Errorf("what leads to it from here: %v", err)
	}
	wantRefused(t, f.Would.Detach, letGo, fmt.Sprintf("pin %s in the mounts of process %d", path, pid))
}

func TestALinkThatIsUnderWayInASocketIsInFlight(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	link := attach(t, v, "sent", 0)
	id := linkID(t, link)
	if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(link)), nil, 0); err != nil {
		t.Fatal(err)
	}
	link.Close()
	f := called(t, look(t), "sent")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.InFlight)
	if f.LinkID != id {
		t.Errorf("its link is %d, want %d", f.LinkID, id)
	}
	if !slices.ContainsFunc(f.By.Sockets, func(s inspect.Socket) bool { return s.PID == os.Getpid() && s.Descriptors == 1 }) {
		t.Errorf("it may be in sockets %+v, want one of this process", f.By.Sockets)
	}
	wantRefused(t, f.Would.Own, letGo, fmt.Sprintf("process %d", os.Getpid()))
}

func TestWhatNetlinkAttachedIsNobodys(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	p := kerneltest.Pass(t, "shared", nil)
	attachByNetlink(t, v.Near, v.NearIndex, p)
	f := called(t, look(t), "shared")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.ByNetlink)
	if f.LinkID != 0 || len(f.By.Processes)+len(f.By.Pins) != 0 {
		t.Errorf("it is held by link %d and %+v, want nobody", f.LinkID, f.By)
	}
	if len(f.Open.Processes) != 1 || f.Open.Processes[0].PID != os.Getpid() {
		t.Errorf("the program is open in %v, want this process", f.Open.Processes)
	}
	wantRefused(t, f.Would.Own, "a link can't take over what netlink attached")
	wantRefused(t, f.Would.Share, "detach it first, or replace it by expecting it")
	id := strconv.FormatUint(uint64(kerneltest.ProgramID(t, p)), 10)
	in := " --netns " + f.Namespace
	for _, c := range []struct {
		answer  inspect.Answer
		command string
	}{
		{f.Would.Replace, "holdfast attach " + v.NearName + " OBJ --shared --single --expect " + id + in},
		{f.Would.Detach, "holdfast detach " + v.NearName + " --foreign --expect " + id + in},
	} {
		if !c.answer.OK || c.answer.Command != c.command {
			t.Errorf("the answer is %+v, want %q", c.answer, c.command)
		}
	}
}

func TestAChainOfXDPLoaderIsTold(t *testing.T) {
	kerneltest.NoLeaks(t)
	v, dir := kerneltest.NewVeth(t), kerneltest.BPFFS(t)
	loader := kerneltest.OpenPeer(t, "1.5")
	args := []string{"load", v.NearName, kerneltest.ObjectFile(t, "pass"), kerneltest.ObjectFile(t, "pass")}
	ended := v.Near.Run(t, loader.Command(dir, args...))
	if ended.Code != 0 && !kerneltest.InMachine() {
		t.Skip("the kernel replaces no functions of programs (BPF_PROG_TYPE_EXT)")
	}
	if ended.Code != 0 {
		t.Fatalf("%+v", ended)
	}
	defer func() {
		if e := v.Near.Run(t, loader.Command(dir, "unload", v.NearName, "--all")); e.Code != 0 {
			t.Errorf("%+v", e)
		}
	}()
	r := look(t)
	f := called(t, r, "xdp_dispatcher")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.ByLibxdp)
	if len(f.Members) != 2 {
		t.Fatalf("its members are %+v, want 2", f.Members)
	}
	for slot, m := range f.Members {
		if m.Slot != slot || m.Program.Name != "xdp_pass" || !slices.Equal(m.How, []inspect.How{inspect.ByPin}) {
			t.Errorf("member %d is %+v, want xdp_pass in slot %d, pinned", slot, m, slot)
		}
	}
	// The loader also had programs that the kernel takes its time to free.
	alone := func(f inspect.Finding) bool { return f.Program.Name == "xdp_pass" }
	if !kerneltest.Eventually(func() bool { return !slices.ContainsFunc(look(t).Findings, alone) }) {
		t.Errorf("a member is told on its own: %+v", look(t).Findings)
	}
	if !f.Would.Share.OK || f.Would.Own.OK || !f.Would.Detach.OK {
		t.Errorf("what would happen is %+v, want that a member can join and leave, and nobody can own it", f.Would)
	}
}

func TestALinkWhoseInterfaceIsGoneIsDefunct(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	link := attach(t, v, "left", 0)
	id := linkID(t, link)
	_, pid := start(t, link, kerneltest.Command("hold"))
	if err := v.Near.Conn.Delete(v.NearIndex); err != nil {
		t.Fatal(err)
	}
	f := called(t, look(t), "left")
	wantHow(t, f, inspect.Defunct, inspect.ByProcess)
	wantProcess(t, f, pid)
	wantNote(t, f, "attaches nothing any more")
	if f.LinkID != id || f.Interface != "" || f.Would != nil {
		t.Errorf("it is %+v, want link %d that attaches nothing", f, id)
	}
}

func TestANamespaceWithoutANameIsLookedInto(t *testing.T) {
	kerneltest.NoLeaks(t)
	cmd := kerneltest.Command("hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	p := kerneltest.Start(t, cmd)
	if !p.Lines.Scan() {
		t.Fatal("it said nothing")
	}
	path := fmt.Sprintf("/proc/%d/ns/net", p.PID())
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rtnl.Dial(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	there := &kerneltest.NetNS{NS: ns, Conn: conn}
	if err := conn.AddVeth("inner", "other", -1); err != nil {
		t.Fatal(err)
	}
	attachByNetlink(t, there, there.Device(t, "inner").Index, kerneltest.Pass(t, "nameless", nil))
	// Nothing but the process leads there any more.
	conn.Close()
	ns.Close()
	f := called(t, look(t), "nameless")
	wantAt(t, f, "inner", xdp.Native)
	wantHow(t, f, inspect.ByNetlink)
	if f.Namespace != path || !slices.Equal(f.Namespaces, []string{strconv.Itoa(p.PID())}) {
		t.Errorf("its namespace is %q, called %q, want %s", f.Namespace, f.Namespaces, path)
	}
}

func TestTheSameIndexInTwoNamespacesIsTwoHooks(t *testing.T) {
	kerneltest.NoLeaks(t)
	const index = 77
	var spaces []*kerneltest.NetNS
	for range 2 {
		ns := kerneltest.NewNetNS(t)
		if err := ns.Conn.AddVethAt(index, "same", index+1, "peer"); err != nil {
			t.Fatal(err)
		}
		spaces = append(spaces, ns)
	}
	one, other := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "other", nil)
	first, second := attachProgram(t, spaces[0], index, one, 0), attachProgram(t, spaces[1], index, other, 0)
	firstID, secondID := linkID(t, first), linkID(t, second)
	_, firstPID := start(t, first, kerneltest.Command("hold"))
	p, secondPID := start(t, second, kerneltest.Command("hold"))
	r := look(t)
	f, g := called(t, r, "one"), called(t, r, "other")
	if f.LinkID != firstID || g.LinkID != secondID || f.Index != index || g.Index != index || f.NamespaceID == g.NamespaceID {
		t.Errorf("they are %+v and %+v, want links %d and %d, each in its namespace", f, g, firstID, secondID)
	}
	wantProcess(t, f, firstPID)
	wantProcess(t, g, secondPID)
	// With one program at both the kernel does not tell which link is whose.
	p.Kill()
	if !kerneltest.Eventually(func() bool { return spaces[1].Device(t, "same").XDP == rtnl.XDP{} }) {
		t.Fatal("it stays attached")
	}
	_, thirdPID := start(t, attachProgram(t, spaces[1], index, one, 0), kerneltest.Command("hold"))
	hooks := 0
	for _, f := range look(t).Findings {
		if f.Program.Name != "one" {
			continue
		}
		hooks++
		wantHow(t, f, inspect.ByProcess)
		wantNote(t, f, "one of 2 links holds it")
		if len(f.Candidates) != 2 || f.LinkID != 0 || !f.OfProcess(firstPID) || !f.OfProcess(thirdPID) {
			t.Errorf("it is %+v, want one of two links", f)
		}
		wantRefused(t, f.Would.Own, letGo, fmt.Sprintf("process %d", firstPID), fmt.Sprintf("process %d", thirdPID))
	}
	if hooks != 2 {
		t.Errorf("it is at %d hooks, want 2", hooks)
	}
}

func TestAChildWhoseParentHasEndedIsTheHolder(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	cmd := kerneltest.Command("leave a child")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	parent, child := start(t, attach(t, v, "forked", 0), cmd)
	state, err := parent.Process.Wait() // its pipes stay open, for the child
	if err != nil || !state.Success() {
		t.Fatalf("the parent: %s (%v)", state, err)
	}
	f := called(t, look(t), "forked")
	wantAt(t, f, v.NearName, xdp.Native)
	wantHow(t, f, inspect.ByProcess)
	wantProcess(t, f, child)
	if child == parent.PID() || !f.By.Processes[0].Orphan {
		t.Errorf("its holder is %+v, want an orphan", f.By.Processes[0])
	}
	wantNote(t, f, "may have been started by one that has ended")
	parent.Input.Close()
	if !kerneltest.Eventually(func() bool { return v.Near.Device(t, v.NearName).XDP == rtnl.XDP{} }) {
		t.Error("it stays attached when the child has ended")
	}
}

func TestALinkThatAnotherRootDetachedIsDefunct(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	link := attach(t, v, "taken", 0)
	id := linkID(t, link)
	_, pid := start(t, link, kerneltest.Command("hold"))
	forced, err := kernel.LinkByID(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.LinkDetach(forced); err != nil {
		t.Fatal(err)
	}
	forced.Close()
	r := look(t, v.NearName)
	f := called(t, r, "taken")
	wantHow(t, f, inspect.Defunct, inspect.ByProcess)
	wantProcess(t, f, pid)
	wantNote(t, f, "another root detached it by force")
	hook := found(t, r, v.NearName, func(f inspect.Finding) bool { return f.Interface == v.NearName })
	wantHow(t, hook, inspect.Empty)
	if !hook.Would.Own.OK || !hook.Would.Share.OK || hook.Would.Detach.OK {
		t.Errorf("what would happen is %+v, want that it can be attached to", hook.Would)
	}
}

func TestGenericModeWhereTheDriverIsNativeIsTold(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	_, pid := start(t, attach(t, v, "slow", unix.XDP_FLAGS_SKB_MODE), kerneltest.Command("hold"))
	f := called(t, look(t), "slow")
	wantAt(t, f, v.NearName, xdp.Generic)
	wantHow(t, f, inspect.ByProcess)
	wantProcess(t, f, pid)
	wantNote(t, f, "the driver of "+v.NearName+" runs programs natively")
}

func TestAProgramThatIsAttachedNowhereIsItsHolders(t *testing.T) {
	kerneltest.NoLeaks(t)
	kerneltest.Pass(t, "idle", nil)
	f := called(t, look(t), "idle")
	wantHow(t, f, inspect.Loaded, inspect.ByProcess)
	wantProcess(t, f, os.Getpid())
	if f.Would != nil {
		t.Errorf("it has no hook, and there would happen %+v", f.Would)
	}
}
