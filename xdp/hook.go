package xdp

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace: interfaces are addressed in it,
// because names and indexes repeat from one to the next. It can be used from
// several goroutines.
type Namespace struct {
	ns   *netns.NS
	conn *rtnl.Conn
	id   string
	// names are those that Namespaces found.
	names []string
	// unbound is for the links made here.
	unbound unbound
}

// OpenNamespace opens a network namespace: by its name under /run/netns, by a
// path, or by the pid of a process in it; a name wins over a pid. The caller
// closes it.
//
// An empty spec is the namespace of the thread that makes the call. What goes by
// netlink stays there, while [Hook.AttachLink] and [Namespace.Do] act, as a bare
// system call does, in the namespace of the thread that calls them: a goroutine
// that moves its thread between namespaces names the one it means. All others
// need CAP_SYS_ADMIN; a call in one is made on a thread of its own, and the
// caller's thread is never moved.
//
// Errors: ErrNotFound, ErrPermission.
func OpenNamespace(spec string) (*Namespace, error) {
	if spec == "" {
		return newNamespace(netns.Ambient, -1)
	}
	ns, err := netns.Open(spec)
	if err != nil {
		return nil, namespaceError(spec, err)
	}
	return newNamespace(ns, ns.FD())
}

// Namespaces opens all network namespaces that can be found, one after the other and
// each once, the caller's first: those that have a name, that a process is in, or that
// a mount or a process's descriptor keeps. The caller closes each.
//
// Where the process that leads to a namespace ends meanwhile, it is looked for again:
// whatever else keeps it need not be gone. An error comes in the place of a namespace
// that may not be entered, as ErrPermission, or says what kept all others from being
// found.
func Namespaces() iter.Seq2[*Namespace, error] {
	// Whoever starts and ends processes in namespaces of their own could have it look
	// for ever.
	const (
		looks = 64
		limit = 2 * time.Second
	)
	return func(yield func(*Namespace, error) bool) {
		told := map[uint64]bool{}
		denied := map[uint64]string{}
		begin := time.Now()
		for n := 0; n < looks && (n < 3 || time.Since(begin) < limit); n++ {
			found, err := netns.All()
			if err != nil {
				yield(nil, &Error{Op: "find network namespaces", Err: ErrUnexpected, Detail: err.Error()})
				return
			}
			lost := false
			for _, f := range found {
				if told[f.Inode] {
					continue
				}
				ns, err := openFound(f)
				// A process that is about to end denies it, too: one that
				// does so twice may not be looked into.
				if errors.Is(err, ErrNotFound) || errors.Is(err, ErrPermission) && denied[f.Inode] != f.Spec {
					denied[f.Inode] = f.Spec
					lost = true
					continue
				}
				told[f.Inode] = true
				if !yield(ns, err) {
					return
				}
			}
			if !lost {
				return
			}
		}
		yield(nil, &Error{
			Op: "find network namespaces", Err: ErrUnexpected,
			Detail: "each time one that was found was gone when it was to be opened",
		})
	}
}

func openFound(f netns.Found) (*Namespace, error) {
	opened, err := f.Open()
	if err != nil {
		return nil, namespaceError(f.Spec, err)
	}
	ns, err := newNamespace(opened, opened.FD())
	if err != nil {
		return nil, err
	}
	ns.names = f.Names
	return ns, nil
}

// NamespaceOf opens the network namespace that a descriptor is of, which stays the
// caller's. Messages call it spec, and do not mention it where that is empty. The
// errors are those of OpenNamespace.
func NamespaceOf(f *os.File, spec string) (*Namespace, error) {
	ns, err := netns.Of(f, spec)
	if err != nil {
		return nil, namespaceError(spec, err)
	}
	return newNamespace(ns, ns.FD())
}

func newNamespace(ns *netns.NS, fd int) (*Namespace, error) {
	spec := ns.Spec()
	conn, err := rtnl.Dial(fd)
	if err != nil {
		ns.Close()
		return nil, namespaceError(spec, err)
	}
	id, err := ns.Identify()
	if err != nil {
		conn.Close()
		ns.Close()
		return nil, namespaceError(spec, err)
	}
	return &Namespace{ns: ns, conn: conn, id: id.String()}, nil
}

func namespaceError(spec string, err error) error {
	e := &Error{Op: "open network namespace", Hook: spec, Err: ErrUnexpected, Detail: err.Error()}
	switch {
	case errors.Is(err, netns.ErrNotExist):
		e.Err = ErrNotFound
		e.Hint = "`ip netns list` shows the names, `lsns -t net` those without one"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Err = ErrPermission
		e.Hint = "entering another namespace needs CAP_SYS_ADMIN"
	}
	errors.As(err, &e.Errno)
	return e
}

// File opens a descriptor of the namespace, which the caller closes.
func (ns *Namespace) File() (*os.File, error) {
	if fd := ns.ns.FD(); fd >= 0 {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		return os.NewFile(uintptr(own), "network namespace"), nil
	}
	return os.Open("/proc/thread-self/ns/net")
}

// Spec is what the namespace was opened by.
func (ns *Namespace) Spec() string { return ns.ns.Spec() }

// Names are all names of a namespace that [Namespaces] found. One without a name is
// called by the lowest pid in it, or where nobody is in it by the path that keeps it.
func (ns *Namespace) Names() []string { return ns.names }

// ID names the namespace among all that the machine has had since it booted.
// (Before Linux 5.14, which has no namespace cookies, among those it has now.)
// It is fit for a file name.
func (ns *Namespace) ID() string { return ns.id }

// Close closes the namespace. Hooks in it can't be used any more; links can.
func (ns *Namespace) Close() error {
	return errors.Join(ns.conn.Close(), ns.ns.Close())
}

// Do calls f in the namespace, on a thread of its own unless it is the
// caller's, for what has to happen there: loading a device-bound program.
func (ns *Namespace) Do(f func() error) error { return ns.ns.Do(f) }

// Interface is a network interface as the kernel shows it.
type Interface struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	// MTU is in bytes.
	MTU int `json:"mtu"`
	// Kind is what a virtual interface is ("veth", "bridge", ...), empty for
	// a physical one.
	Kind string `json:"kind,omitempty"`
	// Parent is the bus device of a physical interface, from Linux 5.14 on.
	Parent string `json:"parent,omitempty"`
	// Master is the index of the bridge or bond that this is a port of, or 0.
	Master int `json:"master,omitempty"`
	// Programs are the ids of the programs attached, 0 for none.
	Programs Programs `json:"-"`
}

// Programs are the ids of an interface's programs, one a mode.
type Programs struct{ Native, Generic, Offload uint32 }

// At is the id of the program in that mode, 0 for none. For Auto it is the one
// that sees packets: the kernel has native or generic, never both.
func (p Programs) At(m Mode) uint32 {
	switch m {
	case Native:
		return p.Native
	case Generic:
		return p.Generic
	case Offload:
		return p.Offload
	default:
		return max(p.Native, p.Generic)
	}
}

func newInterface(d rtnl.Device) Interface {
	return Interface{
		Name: d.Name, Index: d.Index, MTU: d.MTU,
		Kind: d.Kind, Parent: d.Parent, Master: d.Master,
		Programs: Programs(d.XDP),
	}
}

// Interfaces reads all interfaces of the namespace. It needs no privilege.
func (ns *Namespace) Interfaces() ([]Interface, error) {
	devices, err := ns.conn.Devices()
	if err != nil {
		return nil, &Error{Op: "list interfaces", Err: ErrUnexpected, Detail: err.Error()}
	}
	interfaces := make([]Interface, len(devices))
	for i, d := range devices {
		interfaces[i] = newInterface(d)
	}
	return interfaces, nil
}

// Hook is the place where a program runs: one interface in one mode. It is an
// address: it holds nothing open, and its interface can go away.
type Hook struct {
	ns    *Namespace
	name  string
	index int
	mode  Mode
}

const (
	opFind    = "find interface"
	hintNames = "`ip link` lists the interfaces"
)

// Hook finds the hook of the interface of that name, or returns ErrNotFound.
// It needs no privilege.
func (ns *Namespace) Hook(name string, mode Mode) (*Hook, error) {
	if err := CheckName(name); err != nil {
		return nil, &Error{Op: opFind, Err: ErrInvalid, Detail: err.Error(), Hint: hintNames}
	}
	d, err := ns.conn.Device(name)
	return ns.found(d, err, name, mode)
}

// HookAt finds the hook of the interface of that index, or returns ErrNotFound.
// It needs no privilege.
func (ns *Namespace) HookAt(index int, mode Mode) (*Hook, error) {
	if index <= 0 || index > math.MaxInt32 {
		return nil, &Error{
			Op: opFind, Err: ErrInvalid,
			Detail: fmt.Sprintf("no interface has index %d", index), Hint: hintNames,
		}
	}
	d, err := ns.conn.DeviceByIndex(index)
	return ns.found(d, err, fmt.Sprintf("interface %d", index), mode)
}

func (ns *Namespace) found(d rtnl.Device, err error, what string, mode Mode) (*Hook, error) {
	switch {
	case rtnl.IsNotExist(err):
		return nil, &Error{
			Op: opFind, Hook: what, Err: ErrNotFound,
			Detail: "no such interface" + ns.in(),
			Hint:   hintNames + "; --netns names another network namespace",
		}
	case err != nil:
		return nil, &Error{Op: opFind, Hook: what, Err: ErrUnexpected, Detail: err.Error()}
	}
	return &Hook{ns: ns, name: d.Name, index: d.Index, mode: mode}, nil
}

// in says which namespace, for messages, where it is not the caller's own.
func (ns *Namespace) in() string {
	if ns.Spec() == "" {
		return ""
	}
	return fmt.Sprintf(" in network namespace %q", ns.Spec())
}

// CheckName refuses what can't be an interface's name, by the kernel's
// dev_valid_name.
func CheckName(name string) error {
	if name == "" {
		return errors.New("an interface's name is empty")
	}
	if len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("%.20q is too long for an interface's name: %d bytes at most", name, unix.IFNAMSIZ-1)
	}
	for i := range len(name) {
		if c := name[i]; c == '/' || c == ':' || c == ' ' || c >= '\t' && c <= '\r' || c == 0 {
			return fmt.Errorf("%q can't be an interface's name: it contains %q", name, c)
		}
	}
	return nil
}

// Namespace is the namespace that the hook was found in.
func (h *Hook) Namespace() *Namespace { return h.ns }

// Name is the interface's name when the hook was found.
func (h *Hook) Name() string { return h.name }

// Index is the interface's index in its namespace.
func (h *Hook) Index() int { return h.index }

// Mode is the mode that was asked for.
func (h *Hook) Mode() Mode { return h.mode }

// String is the hook's name in messages.
func (h *Hook) String() string {
	if h.mode == Auto {
		return h.name + h.ns.in()
	}
	return fmt.Sprintf("%s (%s)%s", h.name, h.mode, h.ns.in())
}
