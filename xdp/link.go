package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"golang.org/x/sys/unix"
)

// Link is a descriptor of a bpf_link: it owns a hook. As long as anybody holds
// a descriptor or a pin of the link, its program stays attached, and only who
// has one can replace or detach it; whoever has one can, without any
// capability. Dropping a Link without Close leaks the descriptor, and the
// program stays attached until the process ends.
//
// A Link can be used from several goroutines, but not during or after Close.
type Link struct {
	fd kernel.FD
	// place is what messages call it: its hook or its pin.
	place fmt.Stringer
	// hook is nil where the link was not made here.
	hook    *Hook
	unbound *unbound
}

// opened is how a link was opened that was not made here.
type opened string

func (o opened) String() string { return string(o) }

// AttachLink makes the hook owned: it attaches the program by a new link. The
// hook must be empty; a link can't take over what netlink attached. The caller
// closes the link, which detaches the program unless the link was persisted or
// somebody else has it too. The program stays the caller's and may be closed.
//
// Errors: ErrConflict, ErrPort, ErrMTU, ErrDeviceBound, ErrNotSupported,
// ErrNotFound, ErrPermission, ErrInvalid.
func (h *Hook) AttachLink(prog *ebpf.Program) (*Link, error) {
	const op = "attach"
	if err := checkProgram(op, h, prog); err != nil {
		return nil, err
	}
	var fd kernel.FD
	err := h.ns.ns.Do(func() (err error) {
		// No mode is the kernel's own automatic: native if the driver has
		// ndo_bpf, generic if not.
		fd, err = kernel.LinkCreateXDP(prog.FD(), h.index, h.mode.flags())
		return err
	})
	if err != nil {
		return nil, h.explain(change{op: op, prog: prog}, err)
	}
	return &Link{fd: fd, place: h, hook: h, unbound: &h.ns.unbound}, nil
}

// checkProgram refuses what the kernel would answer with a bare EINVAL.
func checkProgram(op string, place fmt.Stringer, prog *ebpf.Program) error {
	switch {
	case prog == nil:
		return &Error{Op: op, Hook: place.String(), Err: ErrInvalid, Detail: "no program", Hint: "load one first"}
	case prog.FD() < 0:
		// To netlink, attaching -1 is to detach.
		return &Error{Op: op, Hook: place.String(), Err: ErrInvalid, Detail: "the program is closed", Hint: "close it afterwards"}
	case prog.Type() != ebpf.XDP:
		return &Error{
			Op: op, Hook: place.String(), Err: ErrInvalid,
			Detail: fmt.Sprintf("the program is of type %s", prog.Type()),
			Hint:   "only a program of type XDP runs here",
		}
	}
	return nil
}

// OpenPinned opens a link by the path of its pin. The caller closes it; the pin
// stays. A defunct link opens too.
//
// Errors: ErrNotFound, ErrInvalid where the pin is no XDP link, ErrPermission.
func OpenPinned(path string) (*Link, error) {
	fd, err := kernel.OpenPin(path)
	if err != nil {
		return nil, pinError(opOpenPin, path, err)
	}
	l, err := adopt(fd, path)
	if err != nil {
		fd.Close()
	}
	return l, err
}

// Adopt makes a Link of a descriptor that was inherited or came through a
// socket, and owns it from then on. On an error it stays the caller's.
//
// Errors: ErrInvalid where it is no XDP link, ErrPermission.
func Adopt(fd int) (*Link, error) {
	unix.CloseOnExec(fd)
	return adopt(kernel.FD(fd), fmt.Sprintf("descriptor %d", fd))
}

func adopt(fd kernel.FD, name string) (*Link, error) {
	const op = "open link"
	if !kernel.IsLink(fd) {
		return nil, &Error{Op: op, Hook: name, Err: ErrInvalid, Detail: "not an XDP link", Hint: hintXDPLink}
	}
	switch _, err := kernel.XDPLinkInfo(fd); {
	case err == nil:
		return &Link{fd: fd, place: opened(name), unbound: &unbound{}}, nil
	case errors.Is(err, kernel.ErrNotXDP):
		return nil, &Error{Op: op, Hook: name, Err: ErrInvalid, Detail: "a link, but not of XDP", Hint: hintXDPLink}
	case errors.Is(err, unix.EPERM):
		return nil, &Error{Op: op, Hook: name, Err: ErrPermission, Errno: unix.EPERM, Hint: bpfClosed}
	default:
		return nil, &Error{Op: op, Hook: name, Err: ErrUnexpected, Detail: err.Error()}
	}
}

const hintXDPLink = "name what AttachLink made"

// bpfClosed is why a process that has the link may still not use it: before
// Linux 5.19 that setting closes bpf(2) as a whole.
const bpfClosed = "bpf(2) is closed to this process, see kernel.unprivileged_bpf_disabled"

// OpenID opens a link by its id, whoever holds it. The caller closes it, and
// prolongs the link's life until then. It needs CAP_SYS_ADMIN.
//
// Errors: ErrNotFound, ErrInvalid, ErrPermission.
func OpenID(id uint32) (*Link, error) {
	name := fmt.Sprintf("link %d", id)
	fd, err := kernel.LinkByID(id)
	if err != nil {
		return nil, pinError("open", name, err)
	}
	l, err := adopt(fd, name)
	if err != nil {
		fd.Close()
	}
	return l, err
}

// FD is the link's descriptor, which stays the link's: to hand it on, over a
// socket or to a child, is to hand on all authority over the attachment. It is
// -1 once the link is closed.
func (l *Link) FD() int { return int(l.fd) }

// Close gives the descriptor back. If it was the last, and there is no pin, the
// program is detached a few milliseconds later. Closing again does nothing.
func (l *Link) Close() error {
	if l.fd == closed {
		return nil
	}
	fd := l.fd
	// The number is soon another's.
	l.fd = closed
	return fd.Close()
}

const closed kernel.FD = -1

// LinkInfo is what the kernel tells of a link.
type LinkInfo struct {
	ID        uint32 `json:"id"`
	ProgramID uint32 `json:"program_id"`
	// Index is the interface's, in the namespace where it is now: the kernel
	// does not say which. It is 0 for a defunct link.
	Index int `json:"ifindex"`
}

// Defunct tells whether the link no longer attaches anything, because its
// interface is gone or somebody detached it by force. It never will again.
func (i LinkInfo) Defunct() bool { return i.Index == 0 }

// Info reads the link.
func (l *Link) Info() (LinkInfo, error) {
	info, err := kernel.XDPLinkInfo(l.fd)
	if err != nil {
		return LinkInfo{}, pinError("read link of", l.place.String(), err)
	}
	return LinkInfo{ID: info.ID, ProgramID: info.ProgID, Index: int(info.Ifindex)}, nil
}

// Links reads every XDP link of the machine, in all network namespaces, defunct
// ones too. It needs CAP_SYS_ADMIN.
func Links() ([]LinkInfo, error) {
	links, err := kernel.XDPLinks()
	if err != nil {
		return nil, pinError("list", "links", err)
	}
	infos := make([]LinkInfo, len(links))
	for i, l := range links {
		infos[i] = LinkInfo{ID: l.ID, ProgramID: l.ProgID, Index: int(l.Ifindex)}
	}
	return infos, nil
}

// ReplaceOptions say what Replace does.
type ReplaceOptions struct {
	// Program runs from then on. It stays the caller's.
	Program *ebpf.Program
	// Expect is what must run until then: [Expect], [ExpectID] or [Any].
	Expect Expectation
	// Hook is where the link is, for a link that AttachLink did not make.
	// It lets errors say more, and a device-bound program needs it.
	Hook *Hook
	// BoundTo is the index of the interface that a device-bound program was
	// loaded for. The kernel neither tells nor, here, checks it, so such a
	// program is refused unless this is the link's interface, and the link in
	// native mode.
	BoundTo int
}

// Replace replaces the link's program in one step: every packet meets the old
// one or the new one.
//
// Errors: ErrConflict when another program than expected runs, ErrGone,
// ErrMTU, ErrAttachType, ErrDeviceBound, ErrPermission, ErrInvalid. On every
// error the old program still runs.
func (l *Link) Replace(o ReplaceOptions) error {
	const op = "replace"
	if err := checkProgram(op, l.place, o.Program); err != nil {
		return err
	}
	if err := l.checkBound(o); err != nil {
		return err
	}
	var err error
	switch o.Expect.kind {
	case expectAny:
		err = kernel.LinkUpdateAny(l.fd, o.Program.FD())
	case expectProgram:
		fd, release, openErr := o.Expect.open()
		if errors.Is(openErr, unix.ENOENT) {
			e := l.conflict(op, o, 0)
			e.Detail += notLoaded
			return e
		}
		if openErr != nil {
			return expectationError(op, l.place.String(), o.Expect, openErr)
		}
		defer release()
		err = kernel.LinkUpdate(l.fd, o.Program.FD(), fd)
	default:
		return noExpectation(op, l.place.String(), o.Expect)
	}
	if err != nil {
		return l.explain(op, o, err)
	}
	return nil
}

// noExpectation refuses a change with an expectation that can't be one.
func noExpectation(op, hook string, e Expectation) error {
	err := &Error{
		Op: op, Hook: hook, Err: ErrInvalid,
		Detail: fmt.Sprintf("the expectation is %q", e),
		Hint:   "say which program is expected, or Any",
	}
	if op == "attach" {
		err.Hint = "say Empty, or which program is expected, or Any"
	}
	return err
}

// Detach detaches the program at once, for everybody who holds the link, and
// leaves it defunct. It takes no expectation: the kernel has none for it, and
// who has the link may end what it attaches, whatever program that is by now.
//
// Errors: ErrGone where the link is defunct already, ErrPermission.
func (l *Link) Detach() error {
	const op = "detach"
	// The kernel answers with success, also where it did nothing.
	info, err := l.Info()
	if err != nil {
		return err
	}
	if info.Defunct() {
		e := l.gone(op, 0)
		e.Hint = "there is nothing left to detach"
		return e
	}
	if err := kernel.LinkDetach(l.fd); err != nil {
		return pinError(op, l.place.String(), err)
	}
	return nil
}

// Persist makes the attachment permanent: it pins the link at a path in a bpffs,
// mode 0600, where it outlives the process. Whoever can open the pin for writing
// can replace and detach. Removing the pin ends what it made permanent.
//
// Errors: ErrExists, ErrInvalid outside a bpffs, ErrNotFound, ErrPermission.
func (l *Link) Persist(path string) error {
	if l.fd == closed {
		// The kernel answers EINVAL, as for a path.
		return pinError(opPersist, l.place.String(), unix.EBADF)
	}
	if err := kernel.Pin(l.fd, path); err != nil {
		return pinError(opPersist, path, err)
	}
	return nil
}

// outsideBPFFS tells whether the directory surely lies in no bpffs: it may be
// one that the caller can't look into.
func outsideBPFFS(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil && !bpffs.Is(dir)
}

const (
	opOpenPin = "open pin"
	opPersist = "persist"
)

// pinError translates the errno of a call on a path or an object of its own.
func pinError(op, path string, err error) error {
	e := &Error{Op: op, Hook: path, Err: ErrUnexpected}
	if !errors.As(err, &e.Errno) {
		e.Detail = err.Error()
		return e
	}
	switch e.Errno {
	case unix.ENOENT, unix.ENOTDIR:
		e.Err = ErrNotFound
		switch op {
		case opPersist:
			e.Detail, e.Hint = "there is no such directory", "make it first"
		case opOpenPin:
			e.Detail, e.Hint = "nothing is pinned there", "check the path, and that its bpffs is mounted"
		default:
			e.Detail, e.Hint = "it has ended", "look at what is attached now"
		}
	case unix.EEXIST:
		e.Err, e.Hint = ErrExists, "choose another path, or remove what is there"
	case unix.EPERM, unix.EACCES:
		e.Err = ErrPermission
		// The kernel answers EPERM outside a bpffs, for a dot in a name, and
		// EACCES for a file that is no pin.
		switch {
		case op != opPersist && op != opOpenPin:
			e.Hint = "opening what is known by its id needs CAP_SYS_ADMIN"
		case outsideBPFFS(filepath.Dir(path)):
			e.Err, e.Detail, e.Hint = ErrInvalid, "a pin must be in a bpffs", "such as /sys/fs/bpf, see `mount -t bpf`"
		case op == opPersist && strings.Contains(filepath.Base(path), "."):
			e.Err, e.Detail, e.Hint = ErrInvalid, "a bpffs takes no name with a dot in it", "choose a path without"
		default:
			e.Hint = "the pin, or a directory above it, is another user's"
		}
	case unix.EBADF, unix.EBADFD:
		e.Err, e.Detail, e.Hint = ErrInvalid, "the link is closed", "close it afterwards"
	case unix.EINVAL, unix.ELOOP, unix.EISDIR, unix.ENAMETOOLONG:
		e.Err, e.Hint = ErrInvalid, "check the path"
	}
	return e
}
