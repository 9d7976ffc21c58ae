package xdp

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"golang.org/x/sys/unix"
)

// This file is where the kernel's errnos get their meaning. It looks around
// only after a refusal, so that what succeeds costs one system call.

// explain says why an attach, replace or detach at the hook was refused.
func (h *Hook) explain(c change, err error) error {
	e := &Error{Op: c.op, Hook: h.String(), Err: ErrUnexpected}
	if !errors.As(err, &e.Errno) {
		e.Detail = err.Error()
		return e
	}
	var answer *rtnl.Error
	if errors.As(err, &answer) {
		e.Extack = answer.Extack
	}
	switch e.Errno {
	case unix.EBUSY:
		h.addRival(e, c)
	case unix.EEXIST:
		// The port of a master gets this answer for everything, so it is
		// asked about first.
		if !h.addMaster(e) {
			h.addRival(e, c)
		}
	case unix.EPERM, unix.EACCES:
		e.Err, e.Hint = ErrPermission, "attaching needs CAP_NET_ADMIN and CAP_BPF in the interface's network namespace"
	case unix.ENODEV:
		e.Err, e.Detail, e.Hint = ErrNotFound, interfaceGone, hintFindAnew
	case unix.ERANGE:
		h.addMTU(e)
	case unix.EOPNOTSUPP:
		e.Err = ErrNotSupported
		e.Detail = fmt.Sprintf("the driver of %s can't run this program in %s mode", h.name, c.modeOr(h.mode))
		e.Hint = "mode generic works on every interface, and is slower"
		if h.mode == Generic {
			e.Hint = "attach to another interface"
		}
	case unix.EINVAL:
		h.addUnfit(e, c)
	}
	return e
}

const (
	interfaceGone = "the interface is gone"
	hintFindAnew  = "find it anew, by its name and in the namespace where it is now"
)

func (c change) modeOr(m Mode) Mode {
	if c.mode != Auto {
		return c.mode
	}
	return m
}

// unloaded is the refusal that the kernel would give if it could be asked: a
// program that is no longer loaded is not attached either.
func (h *Hook) unloaded(c change) error {
	e := &Error{Op: c.op, Hook: h.String()}
	h.addRival(e, c)
	e.Detail += notLoaded
	return e
}

const notLoaded = ", which is no longer loaded"

// addRival makes it a conflict and names who is in the way.
func (h *Hook) addRival(e *Error, c change) {
	e.Err = ErrConflict
	if c.expect.kind == expectProgram || c.expect.kind == expectEmpty {
		e.Detail = fmt.Sprintf("expected %s", c.expect)
		if c.expect.kind == expectEmpty {
			e.Detail = "expected an empty hook"
		}
	}
	s, err := h.Query()
	if err != nil {
		return
	}
	// In another mode than the one asked for it is in the way just the same.
	e.Rival = s.At(c.modeOr(h.mode))
	if e.Rival == nil && len(s.Attachments) > 0 {
		e.Rival = &s.Attachments[0]
	}
	if e.Rival == nil {
		e.Detail = strings.TrimPrefix(e.Detail+", and nothing is attached any more", ", and ")
		e.Hint = "try again"
		return
	}
	FindHolders(e.Rival)
	e.Hint = rivalHint(e.Rival.Held, c.prog != nil && c.expect.kind == expectNothing, c.expect.kind)
}

// rivalHint is what to do about a rival that is held in that way; link tells that
// the hook was to be held by a link.
func rivalHint(held Holding, link bool, expect expectKind) string {
	switch {
	case held == HeldByLink:
		return "whoever holds the link must let go first"
	case link:
		return "detach it first: a link can't take over what netlink attached"
	case expect == expectNothing || expect == expectEmpty:
		return "detach it first, or replace it by expecting it"
	default:
		return "look at what is attached now and decide again"
	}
}

// addMaster says so if the interface's bridge or bond has the program.
func (h *Hook) addMaster(e *Error) bool {
	d, err := h.ns.conn.DeviceByIndex(h.index)
	if err != nil || d.Master == 0 {
		return false
	}
	master, err := h.ns.conn.DeviceByIndex(d.Master)
	if err != nil || master.XDP == (rtnl.XDP{}) {
		return false
	}
	e.addPort(h.name, h.ns.observe(master, &observer{}))
	return true
}

// addPort says that the interface is a port of one that has a program.
func (e *Error) addPort(name string, master State) {
	e.Err = ErrPort
	e.Detail = fmt.Sprintf("%s is a port of %s %s, which has a program itself", name, master.Interface.Kind, master.Interface.Name)
	e.Rival = master.At(master.Interface.Programs.inUse())
	e.Hint = fmt.Sprintf("the kernel allows one of the two: attach to %s instead, or detach there", master.Interface.Name)
}

func (h *Hook) addMTU(e *Error) {
	e.Err = ErrMTU
	e.Hint = `build the program with SEC("xdp.frags"), or use mode generic`
	if h == nil {
		return
	}
	d, err := h.ns.conn.DeviceByIndex(h.index)
	if err != nil {
		return
	}
	if d.Kind == "veth" {
		e.MaxMTU = vethMaxMTU()
		e.Detail = fmt.Sprintf("the peer of %s may send packets larger than one page holds", h.name)
		e.Hint = fmt.Sprintf("set the peer's MTU to %d or less, %s", e.MaxMTU, e.Hint)
		return
	}
	e.Detail = fmt.Sprintf("%s has MTU %d", h.name, d.MTU)
	e.Hint = "lower the MTU, " + e.Hint
}

// vethMaxMTU is what fits into a page beside XDP's headroom, the shared info at
// the end of a socket buffer and the Ethernet header (veth_xdp_set in
// drivers/net/veth.c).
func vethMaxMTU() int {
	const (
		headroom   = 256 // VETH_XDP_HEADROOM
		sharedInfo = 320 // SKB_DATA_ALIGN(sizeof(struct skb_shared_info))
		ethernet   = 14
	)
	return os.Getpagesize() - headroom - sharedInfo - ethernet
}

// addUnfit finds out what is wrong with the program, or with the place.
func (h *Hook) addUnfit(e *Error, c change) {
	d, err := h.device(e.Op)
	bound := false
	if c.prog != nil {
		bound, _ = kernel.DeviceBound(c.prog.FD())
	}
	switch {
	case errors.Is(err, ErrNotFound):
		// To a new link the kernel gives this answer.
		e.Err, e.Detail, e.Hint = ErrNotFound, interfaceGone, hintFindAnew
	case bound:
		e.Err = ErrDeviceBound
		e.Detail = fmt.Sprintf("the program was loaded for another device than %s, or for the devmap or cpumap attach type", h.name)
		if c.modeOr(h.mode) == Generic {
			e.Detail = "a device-bound program does not run in generic mode"
		}
		e.Hint = "load it for this interface, or for none"
	case h.mode == Offload:
		e.Err = ErrNotSupported
		e.Detail = fmt.Sprintf("%s does not offload programs", h.name)
		e.Hint = "use mode native"
	case c.prog != nil && c.modeOr(h.mode) != Generic:
		e.addDriver(h.name, d.MTU)
	default:
		e.Err = ErrInvalid
		e.Detail = "the kernel does not attach this program here"
		e.Hint = "load it for the XDP hook of an interface"
	}
}

// addDriver says what a driver may mean that refuses a good program. Many answer
// so to what others have errnos of their own for, and their own words, where they
// have some, come with an answer of netlink only.
func (e *Error) addDriver(name string, mtu int) {
	e.Err = ErrNotSupported
	e.Detail = fmt.Sprintf("the driver of %s refuses the program as things are: the MTU", name)
	if mtu != 0 { // could be read
		e.Detail += fmt.Sprintf(" of %d", mtu)
	}
	e.Detail += " may be too large for it, LRO or another receive offload in the way, or the number of queues"
	e.Hint = `lower the MTU or build the program with SEC("xdp.frags"), switch LRO off, or use mode generic`
	if e.Extack == "" {
		e.Detail += "; the kernel's log may say which"
	}
}

// explain says why the kernel refused to replace the link's program.
func (l *Link) explain(op string, o ReplaceOptions, err error) error {
	e := &Error{Op: op, Hook: l.place.String(), Err: ErrUnexpected}
	if !errors.As(err, &e.Errno) {
		e.Detail = err.Error()
		return e
	}
	hook := l.at(o.Hook)
	switch e.Errno {
	case unix.EPERM:
		// The kernel's word for "another program than expected", and for a
		// bpf(2) that is closed as a whole: then the link can't be read
		// either. (Comparing with what runs now would not tell them apart:
		// by now it may be the expected one again.)
		if _, err := l.Info(); err == nil && o.Expect.kind == expectProgram {
			return l.conflict(op, o, e.Errno)
		}
		e.Err, e.Hint = ErrPermission, bpfClosed
	case unix.ENOLINK:
		return l.gone(op, e.Errno)
	case unix.EBADF:
		return pinError(op, l.place.String(), e.Errno)
	case unix.ERANGE:
		hook.addMTU(e)
	case unix.EINVAL:
		// Type and device were checked before; what is left is that the
		// kernel compares expected_attach_type of old and new.
		e.Err = ErrAttachType
		e.Detail = "the link was made with a program of another expected attach type, and keeps it"
		e.Hint = "load the program with the other one: BPF_XDP, or none (NoAttachType in package object)"
	case unix.EOPNOTSUPP:
		e.Err, e.Detail = ErrNotSupported, "the driver does not run this program"
		e.Hint = "attach it anew in mode generic, which works on every interface"
	}
	return e
}

// at is the hook where the link is, as far as it is known, or nil.
func (l *Link) at(named *Hook) *Hook {
	if named != nil {
		return named
	}
	return l.hook
}

func (l *Link) gone(op string, errno unix.Errno) *Error {
	return &Error{
		Op: op, Hook: l.place.String(), Err: ErrGone, Errno: errno,
		Detail: "the link is defunct: its interface is gone, or somebody detached it by force",
		Hint:   "close it and attach anew",
	}
}

func (l *Link) conflict(op string, o ReplaceOptions, errno unix.Errno) *Error {
	e := &Error{Op: op, Hook: l.place.String(), Err: ErrConflict, Detail: "expected " + o.Expect.String(), Errno: errno}
	if info, err := l.Info(); err == nil {
		e.Rival = &Attachment{Program: readProgram(info.ProgramID).Program, Held: HeldByLink, LinkID: info.ID}
		if hook := l.at(o.Hook); hook != nil {
			e.Rival.Mode = hook.mode
		}
		FindHolders(e.Rival)
	}
	e.Hint = "look at what is attached now and decide again"
	return e
}

// programID is the id of the expected program, 0 where it can't be read.
func (e Expectation) programID() uint32 {
	if e.prog == nil {
		return e.id
	}
	info, err := kernel.ReadProgram(kernel.FD(e.prog.FD()))
	if err != nil {
		return 0
	}
	return info.ID
}

// checkBound refuses a device-bound program that was not loaded for the link's
// interface, or that a generic link would run: LINK_UPDATE skips the checks that
// attaching makes.
func (l *Link) checkBound(o ReplaceOptions) error {
	if l.unbound.has(o.Program) {
		return nil
	}
	e := &Error{Op: "replace", Hook: l.place.String(), Err: ErrDeviceBound}
	bound, err := kernel.DeviceBound(o.Program.FD())
	switch {
	case errors.Is(err, unix.EPERM):
		return nil // bpf(2) is closed, and that is the replace's to say
	case err != nil:
		e.Err, e.Detail = ErrUnexpected, "find out whether the program is device-bound: "+err.Error()
		errors.As(err, &e.Errno)
		return e
	case !bound:
		l.unbound.add(o.Program)
		return nil
	}
	hook := l.at(o.Hook)
	info, err := l.Info()
	switch {
	case err != nil:
		return err
	case info.Defunct():
		return l.gone(e.Op, 0)
	case o.BoundTo == 0:
		e.Detail = "the program is device-bound, and the kernel does not tell to which device"
		e.Hint = "set ReplaceOptions.BoundTo to the index of the interface that it was loaded for"
		return e
	case o.BoundTo != info.Index:
		e.Detail = fmt.Sprintf("the program was loaded for interface %d, and the link is at interface %d", o.BoundTo, info.Index)
		e.Hint = "load it for this interface, or for none"
		return e
	case hook == nil || hook.index != info.Index:
		e.Detail = "the program is device-bound, and a link does not tell in which mode it is"
		e.Hint = "set ReplaceOptions.Hook to the link's hook"
		return e
	}
	d, err := hook.device(e.Op)
	if err != nil {
		return err
	}
	if d.XDP.Native != info.ProgramID {
		e.Detail = "a device-bound program runs in native mode only, and the link is not"
		if d.XDP.Generic == info.ProgramID {
			e.Detail = "a device-bound program does not run in generic mode"
		}
		e.Hint = "load it for no device"
		return e
	}
	return nil
}

// unbound remembers the two programs last seen to be bound to no device, so that
// replacing one by the other at many hooks, or back and forth, costs nothing but
// the system call. It keeps these two alive.
type unbound [2]atomic.Pointer[ebpf.Program]

func (u *unbound) has(prog *ebpf.Program) bool {
	return u[0].Load() == prog || u[1].Load() == prog
}

func (u *unbound) add(prog *ebpf.Program) { u[1].Store(u[0].Swap(prog)) }
