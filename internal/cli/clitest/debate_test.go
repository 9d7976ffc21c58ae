package clitest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// TestDebate shows what the kernel's developers argued about in March 2020,
// each claim as far as it is the command's; package xdp shows the others.
func TestDebate(t *testing.T) {
	t.Run("a temporary program does not become a permanent one that nobody knows of", temporaryIsGone)
	t.Run("what is attached by the command goes on until told to stop", attachedGoesOn)
	t.Run("a container may have CAP_NET_ADMIN and its interface, and can't take the program off", containersCantDetach)
	t.Run("two teams who never met are told of each other", conflictsNameTeams)
}

func temporaryIsGone(t *testing.T) {
	m := newMachine(t)
	p := m.start(m.command(m.run("until killed")...))
	p.pid()
	if found := m.status(); len(found) != 1 || found[0].Lifetime != arbiter.Held || len(found[0].Holders) != 1 {
		t.Errorf("while it runs status is %+v", found)
	}
	if found := m.who(m.NearName); len(found) != 1 || !slices.ContainsFunc(found[0].By.Processes, func(by inspect.Process) bool { return by.PID == p.Cmd.Process.Pid }) {
		t.Errorf("while it runs who tells %+v", found)
	}
	p.Cmd.Process.Kill()
	m.empties()
	if found := m.status(); len(found) != 0 {
		t.Errorf("after SIGKILL status is %+v", found)
	}
	if found := m.who(m.NearName); len(found) != 1 || found[0].Program.ID != 0 {
		t.Errorf("after SIGKILL who tells %+v", found)
	}
	// What was recorded of it goes with the next change, or with gc.
	m.holdfast("gc").succeeds()
	if left := entries(t, m.state); len(left) != 0 {
		t.Errorf("the state has %v", left)
	}
}

func attachedGoesOn(t *testing.T) {
	m := newMachine(t)
	at := m.attach("pass", "--name", "filter")
	still := func(after string, ns *kerneltest.NetNS) {
		t.Helper()
		found := decode[[]hookStatus](m.finish(ns, m.command("status", "-o", "json")), "status")
		if len(found) != 1 || found[0].LinkID != at.LinkID || found[0].Program.ID != at.Program.ID ||
			found[0].Name != "filter" || found[0].Lifetime != arbiter.Permanent {
			t.Errorf("after %s status is %+v", after, found)
		}
	}
	still("the end of the command", m.Near)
	if err := m.Near.Conn.SetUp(m.NearIndex, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Near.Conn.Rename(m.NearIndex, "renamed"); err != nil {
		t.Fatal(err)
	}
	still("a rename", m.Near)
	there := kerneltest.NewNetNS(t)
	if err := m.Near.Conn.Move(m.NearIndex, there.FD()); err != nil {
		t.Fatal(err)
	}
	still("a move to another namespace", there)
	m.finish(there, m.command("detach", "renamed")).succeeds()
	if id := there.Device(t, "renamed").XDP.Native; id != 0 {
		t.Errorf("told to stop, program %d is attached", id)
	}
}

// containersCantDetach attaches from the host, moves the interface to a
// namespace of a container's, and lets the container try. Then the owner hands
// the link over, because he wants to.
func containersCantDetach(t *testing.T) {
	m := newMachine(t)
	at := m.attach("pass", "--name", "host's filter")
	theirs := kerneltest.NewNetNS(t)
	if err := m.Near.Conn.Move(m.NearIndex, theirs.FD()); err != nil {
		t.Fatal(err)
	}
	link, err := kernel.LinkByID(at.LinkID)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, socket := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()

	cmd := m.command("child", "container", m.NearName, m.state, itoa(at.LinkID))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF}
	guest := *m
	veth := *m.Veth
	veth.Near, guest.Veth = theirs, &veth
	p := guest.start(cmd)
	socket.Close()
	for _, want := range []string{
		"open the state: permission denied",
		"open the link by its id: operation not permitted",
		"detach by netlink: device or resource busy",
		"replace by netlink, rightly expecting: device or resource busy",
		"attach a link: device or resource busy",
		"set the interface down and up: done",
		"set its MTU: done",
	} {
		if got := p.line(); got != want {
			t.Errorf("in the container: %q, want %q", got, want)
		}
	}
	if now := theirs.Device(t, m.NearName).XDP.Native; now != at.Program.ID {
		t.Fatalf("program %d is attached, want %d", now, at.Program.ID)
	}
	// To have the descriptor is all that it takes.
	if err := unix.Sendmsg(int(ours.Fd()), []byte("link"), unix.UnixRights(int(link)), nil, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := p.line(), "replace what was handed over: done"; got != want {
		t.Errorf("in the container: %q, want %q", got, want)
	}
	if now := theirs.Device(t, m.NearName).XDP.Native; now == at.Program.ID || now == 0 {
		t.Errorf("program %d is attached, want the container's", now)
	}
	p.code()
	m.finish(theirs, m.command("detach", m.NearName)).succeeds()
}

// container is what a process in a container tries at an interface of its own.
func container(args []string) int {
	name, state := args[0], args[1]
	var linkID uint32
	fmt.Sscan(args[2], &linkID)
	try := func(what string, f func() error) {
		var errno syscall.Errno
		switch err := f(); {
		case err == nil:
			fmt.Printf("%s: done\n", what)
		case errors.As(err, &errno):
			fmt.Printf("%s: %s\n", what, errno)
		default:
			fmt.Printf("%s: %s\n", what, err)
		}
	}
	conn, err := rtnl.Dial(-1)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	device, err := conn.Device(name)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	own, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "container", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	try("open the state", func() error { _, err := os.ReadDir(state); return err })
	try("open the link by its id", func() error { _, err := kernel.LinkByID(linkID); return err })
	try("detach by netlink", func() error { return conn.SetXDP(device.Index, -1, 0) })
	// Nobody without CAP_SYS_ADMIN gets a descriptor of the program that is
	// there, and with one of its own the refusal is the link's all the same.
	try("replace by netlink, rightly expecting", func() error {
		return conn.ReplaceXDP(device.Index, own.FD(), own.FD(), unix.XDP_FLAGS_DRV_MODE)
	})
	try("attach a link", func() error { _, err := kernel.LinkCreateXDP(own.FD(), device.Index, 0); return err })
	try("set the interface down and up", func() error {
		return errors.Join(conn.SetUp(device.Index, false), conn.SetUp(device.Index, true))
	})
	try("set its MTU", func() error { return conn.SetMTU(device.Index, 1400) })
	try("replace what was handed over", func() error {
		oob := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(3, make([]byte, 16), oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return fmt.Errorf("%d messages: %w", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		l, err := xdp.Adopt(fds[0])
		if err != nil {
			return err
		}
		return l.Replace(xdp.ReplaceOptions{Program: own, Expect: xdp.Any})
	})
	return 0
}

func conflictsNameTeams(t *testing.T) {
	m := newMachine(t)
	at := m.attach("filter", "--name", "ddos-team", "--exclusive")
	object := kerneltest.ObjectFile(t, "pass")
	for _, c := range []struct {
		args, says []string
		hint       string
	}{
		{[]string{"attach", m.NearName, object, "--name", "balancer-team"}, []string{"can't be shared", "is uid 0 "}, "have it give that up"},
		{[]string{"run", m.NearName, object, "--", self, "child", "exit", "0"}, []string{"can't be shared", "is uid 0 "}, "have it give that up"},
		{[]string{"attach", m.NearName, object, "--shared"}, []string{"conflict", itoa(at.Program.ID), `"filter"`, "link " + itoa(at.LinkID), "by uid 0"}, "must let go first"},
	} {
		r := m.holdfast(c.args...)
		r.fails(4, append(c.says, `"ddos-team"`, "since ")...)
		if hint := strings.TrimSpace(r.err[strings.LastIndex(r.err, "; ")+2:]); !strings.Contains(hint, c.hint) {
			t.Errorf("%s\nwhich does not end with what to do", r)
		}
	}
	m.holds(at.Program.ID)
	// As long as both can live with that, they need not know of each other.
	m.holdfast("set", m.NearName, "ddos-team", "--exclusive=false").succeeds()
	m.holdfast("attach", m.NearName, object, "--name", "balancer-team").succeeds()
	m.wants("ddos-team/50/pass balancer-team/50/pass")
}
