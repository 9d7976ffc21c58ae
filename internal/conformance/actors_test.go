package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// who is a process with certain rights.
type who struct {
	name string
	// become makes the command one.
	become func(*syscall.SysProcAttr)
	// drops says that uid 0 keeps NET_ADMIN and BPF alone, which the process
	// has to do itself: root gets everything back when it executes.
	drops bool
	// apart says that it lives in a network namespace of its own.
	apart bool
}

const otherUID = 65534

func otherUser(caps ...uintptr) func(*syscall.SysProcAttr) {
	return func(a *syscall.SysProcAttr) {
		a.Credential = &syscall.Credential{Uid: otherUID, Gid: otherUID}
		a.AmbientCaps = caps
	}
}

var (
	fullRoot  = who{name: "full root", become: func(*syscall.SysProcAttr) {}}
	netRoot   = who{name: "uid 0 with only NET_ADMIN and BPF", become: func(*syscall.SysProcAttr) {}, drops: true}
	netUser   = who{name: "another uid with NET_ADMIN and BPF", become: otherUser(unix.CAP_NET_ADMIN, unix.CAP_BPF)}
	adminUser = who{name: "another uid with SYS_ADMIN", become: otherUser(unix.CAP_SYS_ADMIN)}
	plainUser = who{name: "another uid without capabilities", become: otherUser()}
	nsRoot    = who{name: "the root of a user namespace", apart: true, become: func(a *syscall.SysProcAttr) {
		a.Cloneflags |= unix.CLONE_NEWUSER | unix.CLONE_NEWNET
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: otherUID, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: otherUID, Size: 1}}
		a.Credential = &syscall.Credential{NoSetGroups: true}
	}}
)

// What an actor tries. Each inherits a program, and some a link.
const (
	linkByID     = "takes the link by its id"
	openPin      = "opens a pin of mode 0600"
	pidfdGetfd   = "takes the link's descriptor out of its holder"
	netlinkOff   = "detaches by netlink"
	netlinkSet   = "attaches by netlink"
	linkCreate   = "makes a link at an empty hook"
	heldUpdate   = "updates a link that it inherited"
	heldDetach   = "detaches a link that it inherited"
	heldPin      = "pins a link that it inherited"
	pinDetach    = "detaches through a pin of mode 0666"
	idDetach     = "detaches by the link's id, and the owner sees ifindex 0"
	idUpdate     = "updates by the link's id, and the owner sees the program"
	idHold       = "keeps a link alive that it only looks at"
	deleteDevice = "deletes the interface under a link that it can't detach"
)

// cells are the outcomes of one actor: what the kernel answers.
type cells map[string]answer

var (
	held   = ok("native old")
	eperm  = answer{errno: unix.EPERM, leaves: "native old"}
	eacces = answer{errno: unix.EACCES, leaves: "native old"}
	ebusy  = answer{errno: unix.EBUSY, extack: activeLink, leaves: "native old"}
	took   = ok("native new")
)

// From 5.19 on it closes only the loading of programs and the making of maps.
const closedWhy = "kernel.unprivileged_bpf_disabled closes all of bpf(2) to a process without CAP_BPF"

// actors is who can break ownership.
var actors = []struct {
	who   who
	cells cells
}{{
	fullRoot, cells{
		linkByID: held, openPin: held, pidfdGetfd: held,
		netlinkOff: ebusy, netlinkSet: ebusy, linkCreate: took,
		idDetach: ok(empty), idUpdate: took, idHold: held,
	},
}, {
	netRoot, cells{
		linkByID: eperm, openPin: held, pidfdGetfd: eperm,
		netlinkOff: ebusy, netlinkSet: ebusy, linkCreate: took,
	},
}, {
	netUser, cells{
		linkByID: eperm, openPin: eacces, pidfdGetfd: eperm,
		netlinkOff: ebusy, netlinkSet: ebusy, linkCreate: took,
	},
}, {
	adminUser, cells{
		linkByID: held, openPin: eacces, pidfdGetfd: eperm,
		netlinkOff: eperm, netlinkSet: eperm, linkCreate: took,
	},
}, {
	plainUser, cells{
		linkByID: eperm, openPin: eacces, pidfdGetfd: eperm,
		netlinkOff: eperm, netlinkSet: eperm, linkCreate: took,
		heldUpdate: took, heldDetach: ok(empty), heldPin: held, pinDetach: ok(empty),
	},
}, {
	nsRoot, cells{
		linkByID: eperm, openPin: eacces,
		netlinkOff: ebusy, netlinkSet: ebusy, linkCreate: took,
		deleteDevice: ok(gone),
	},
}}

// lacksBPF tells whether that closes bpf(2) to the actor.
func (w who) lacksBPF() bool { return w.name == plainUser.name || w.name == nsRoot.name }

// whenClosed is what it makes of an attempt.
func whenClosed(attempt string, want answer) []difference {
	d := difference{on: before(version{5, 19}), why: closedWhy, want: want}
	switch attempt {
	case linkCreate:
		d.want = answer{errno: unix.EPERM}
	case openPin, heldUpdate, heldDetach, heldPin, pinDetach:
		d.want = eperm
	case netlinkSet:
	default:
		return nil
	}
	d.gives = d.want.expected()
	if attempt == linkCreate || attempt == netlinkSet {
		d.cannot = "an *ebpf.Program of an inherited descriptor takes bpf(2)"
	}
	return []difference{d}
}

// expected is what package xdp returns for the kernel's answer.
func (a answer) expected() result {
	switch a.errno {
	case unix.EPERM, unix.EACCES:
		return result{err: xdp.ErrPermission, leaves: a.leaves}
	case unix.EBUSY:
		return result{err: xdp.ErrConflict, leaves: a.leaves}
	default:
		return done(a.leaves)
	}
}

func actorRows() []row {
	var rows []row
	for _, a := range actors {
		for _, attempt := range []string{
			linkByID, openPin, pidfdGetfd, netlinkOff, netlinkSet, linkCreate,
			heldUpdate, heldDetach, heldPin, pinDetach, idDetach, idUpdate, idHold, deleteDevice,
		} {
			want, there := a.cells[attempt]
			if !there {
				continue
			}
			body := func(p *place) error { return p.attempt(a.who, attempt) }
			r := row{name: a.who.name + " " + attempt, kernel: body, want: want}
			if attempt == pidfdGetfd {
				r.cannot = "package xdp opens links by id and by pin, and adopts a descriptor that the caller got"
			} else {
				r.xdp, r.gives = body, want.expected()
			}
			if a.who.lacksBPF() {
				r.differs = whenClosed(attempt, want)
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// attempt lets the actor try it and returns what it was answered.
func (p *place) attempt(w who, attempt string) error {
	p.Helper()
	pin := filepath.Join(p.openBPFFS(), "link")
	prog := p.prog("new")
	files := []*os.File{p.file(prog.FD())}
	var id uint32
	if attempt != linkCreate {
		p.must(p.create("old", native))
		id = p.info().ID
		p.must(kernel.Pin(p.link, pin))
		if attempt == pinDetach {
			p.must(os.Chmod(pin, 0o666))
		}
	}
	arg := ""
	switch attempt {
	case linkByID, idDetach, idUpdate, idHold:
		arg = strconv.Itoa(int(id))
	case openPin, pinDetach:
		arg = pin
	case heldUpdate, heldDetach, heldPin:
		arg = pin + "2"
		files = append(files, p.file(int(p.link)))
	case pidfdGetfd:
		arg = fmt.Sprintf("%d %d", os.Getpid(), p.link)
	}
	c := p.start(func(cmd *exec.Cmd) {
		w.become(cmd.SysProcAttr)
		cmd.ExtraFiles = files
	}, "actor", strconv.FormatBool(w.drops), attempt, arg)
	c.says("ready")
	if w.apart {
		p.give(c)
	}
	c.tell(strconv.Itoa(p.index))
	err := c.answer()
	switch attempt {
	case idDetach:
		if info := p.info(); info.Ifindex != 0 {
			p.Errorf("%s: the owner sees %+v, want ifindex 0", p.half, info)
		}
	case idUpdate:
		if info := p.info(); info.ProgID != p.id("new") {
			p.Errorf("%s: the owner sees %+v, want program %d", p.half, info, p.id("new"))
		}
	case idHold:
		p.dropLink()
		p.must(os.Remove(pin))
		p.stays("native old")
		c.Kill()
		p.becomes(empty)
		p.must(p.create("old", native))
	case deleteDevice:
		if info := p.info(); info.Ifindex != 0 {
			p.Errorf("%s: the owner sees %+v, want ifindex 0", p.half, info)
		}
	}
	return err
}

// file is a descriptor to inherit.
func (p *place) file(fd int) *os.File {
	p.Helper()
	dup, err := kernel.FD(fd).Dup()
	p.must(err)
	f := os.NewFile(uintptr(dup), "")
	p.Cleanup(func() { f.Close() })
	return f
}

// openBPFFS is a bpffs where everybody may go and make pins, so that a pin's
// own mode decides.
func (p *place) openBPFFS() string {
	p.Helper()
	dir := kerneltest.BPFFS(p.T)
	p.must(os.Chmod(dir, 0o777))
	for up := filepath.Dir(dir); up != filepath.Clean(os.TempDir()) && up != "/"; up = filepath.Dir(up) {
		p.must(os.Chmod(up, 0o755))
	}
	return dir
}

// give moves the interface at hand to the process's network namespace.
func (p *place) give(c *process) {
	p.Helper()
	ns, err := netns.Open(strconv.Itoa(c.PID()))
	p.must(err)
	conn, err := rtnl.Dial(ns.FD())
	p.must(err)
	p.must(p.ns.Conn.Move(p.index, ns.FD()))
	p.ns = &kerneltest.NetNS{NS: ns, Conn: conn}
	p.index = p.ns.Device(p.T, p.name).Index
	p.Cleanup(func() {
		clear(p.ns)
		conn.Close()
		ns.Close()
	})
}

// sentinels in a fixed order, so that a process can say which by its number.
var sentinels = []error{
	xdp.ErrConflict, xdp.ErrPermission, xdp.ErrNotSupported, xdp.ErrNotFound, xdp.ErrNotAttached,
	xdp.ErrGone, xdp.ErrMTU, xdp.ErrAttachType, xdp.ErrDeviceBound, xdp.ErrPort, xdp.ErrExists,
	xdp.ErrInvalid, xdp.ErrUnexpected,
}

// report says how an attempt ended, in a line.
func report(err error) {
	var errno syscall.Errno
	errors.As(err, &errno)
	var x *xdp.Error
	var r *rtnl.Error
	switch {
	case err == nil:
		fmt.Println("success")
	case errors.As(err, &x):
		fmt.Println("returned", slices.Index(sentinels, x.Err), uint(errno), err)
	case errors.As(err, &r):
		fmt.Println("answered", uint(errno), r.Extack)
	case errno != 0:
		fmt.Println("answered", uint(errno))
	default:
		fmt.Println("error", err)
	}
}

// answer reads such a report back.
func (c *process) answer() error {
	c.Helper()
	if !c.Lines.Scan() {
		c.Fatalf("%s: the actor ended without an answer", c.half)
	}
	word, rest, _ := strings.Cut(c.Lines.Text(), " ")
	first, rest, _ := strings.Cut(rest, " ")
	n, _ := strconv.Atoi(first)
	switch word {
	case "success":
		return nil
	case "answered":
		return &rtnl.Error{Errno: syscall.Errno(n), Extack: rest}
	case "returned":
		errno, text, _ := strings.Cut(rest, " ")
		e, _ := strconv.Atoi(errno)
		return &xdp.Error{Op: "as another process", Err: sentinels[n], Errno: syscall.Errno(e), Detail: text}
	default:
		c.Fatalf("%s: the actor said %q", c.half, c.Lines.Text())
		return nil
	}
}

// actor is the command: it makes one attempt, reports, and waits to be killed.
func actor(args []string) error {
	half, attempt, arg := args[0], args[3], args[4]
	// Capabilities are the thread's.
	runtime.LockOSThread()
	if args[2] == "true" {
		if err := keepOnly(unix.CAP_NET_ADMIN, unix.CAP_BPF); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	index, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	if half == "kernel" {
		report(attemptRaw(attempt, arg, index))
	} else {
		report(attemptXDP(attempt, arg, index))
	}
	return wait()
}

// keepOnly gives up every capability of the thread but these.
func keepOnly(caps ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range caps {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

// What an actor inherits.
const (
	inheritedProgram = 3
	inheritedLink    = 4
)

func attemptRaw(attempt, arg string, index int) error {
	switch attempt {
	case linkByID, idHold:
		_, err := byID(arg)
		return err
	case idDetach:
		l, err := byID(arg)
		if err != nil {
			return err
		}
		return kernel.LinkDetach(l)
	case idUpdate:
		l, err := byID(arg)
		if err != nil {
			return err
		}
		return kernel.LinkUpdateAny(l, inheritedProgram)
	case openPin:
		_, err := kernel.OpenPin(arg)
		return err
	case pinDetach:
		l, err := kernel.OpenPin(arg)
		if err != nil {
			return err
		}
		return kernel.LinkDetach(l)
	case pidfdGetfd:
		var pid, fd int
		if _, err := fmt.Sscan(arg, &pid, &fd); err != nil {
			return err
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		_, err = unix.PidfdGetfd(pidfd, fd, 0)
		return err
	case netlinkOff, netlinkSet, deleteDevice:
		conn, err := rtnl.Dial(-1)
		if err != nil {
			return err
		}
		switch attempt {
		case netlinkOff:
			return conn.SetXDP(index, none, native)
		case netlinkSet:
			return conn.SetXDP(index, inheritedProgram, native)
		}
		if err := conn.SetXDP(index, none, native); !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("detach by netlink, want EBUSY: %w", err)
		}
		return conn.Delete(index)
	case linkCreate:
		_, err := kernel.LinkCreateXDP(inheritedProgram, index, native)
		return err
	case heldUpdate:
		return kernel.LinkUpdateAny(inheritedLink, inheritedProgram)
	case heldDetach:
		return kernel.LinkDetach(inheritedLink)
	case heldPin:
		return kernel.Pin(inheritedLink, arg)
	}
	return fmt.Errorf("no attempt %q", attempt)
}

func byID(arg string) (kernel.FD, error) {
	id, err := strconv.ParseUint(arg, 10, 32)
	if err != nil {
		return -1, err
	}
	return kernel.LinkByID(uint32(id))
}

func attemptXDP(attempt, arg string, index int) error {
	switch attempt {
	case linkByID, idHold, idDetach, idUpdate:
		id, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			return err
		}
		l, err := xdp.OpenID(uint32(id))
		if err != nil {
			return err
		}
		switch attempt {
		case idDetach:
			return l.Detach()
		case idUpdate:
			return replaceInherited(l)
		}
		return nil
	case openPin, pinDetach:
		l, err := xdp.OpenPinned(arg)
		if err != nil || attempt == openPin {
			return err
		}
		return l.Detach()
	case heldUpdate, heldDetach, heldPin:
		l, err := xdp.Adopt(inheritedLink)
		if err != nil {
			return err
		}
		switch attempt {
		case heldDetach:
			return l.Detach()
		case heldPin:
			return l.Persist(arg)
		}
		return replaceInherited(l)
	case deleteDevice:
		return attemptRaw(attempt, arg, index)
	}
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return err
	}
	hook, err := ns.HookAt(index, xdp.Native)
	if err != nil {
		return err
	}
	if attempt == netlinkOff {
		return hook.Detach(xdp.Any)
	}
	prog, err := ebpf.NewProgramFromFD(inheritedProgram)
	if err != nil {
		return err
	}
	if attempt == netlinkSet {
		return hook.Attach(prog, xdp.Any)
	}
	_, err = hook.AttachLink(prog)
	return err
}

func replaceInherited(l *xdp.Link) error {
	prog, err := ebpf.NewProgramFromFD(inheritedProgram)
	if err != nil {
		return err
	}
	return l.Replace(xdp.ReplaceOptions{Program: prog, Expect: xdp.Any})
}
