package xdp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"golang.org/x/sys/unix"
)

// Holding is how an attachment is held.
type Holding string

const (
	// HeldByLink: a bpf_link holds it; the kernel refuses everybody else.
	HeldByLink Holding = "link"
	// HeldByNetlink: nobody holds it; it stays until somebody detaches it.
	HeldByNetlink Holding = "netlink"
	// HeldUnknown: telling needs CAP_NET_ADMIN.
	HeldUnknown Holding = "unknown"
)

// Program is a loaded program, as the kernel shows it.
type Program struct {
	ID uint32 `json:"id"`
	// Name has 15 bytes at most. It is empty where reading it is not
	// permitted, as are all fields below.
	Name string `json:"name,omitempty"`
	// Tag is a hash of the program's instructions, in hex.
	Tag string `json:"tag,omitempty"`
	// LoadedAt is to the second or so: the kernel counts from boot.
	LoadedAt time.Time `json:"loaded_at,omitzero"`
	// UID is the user who loaded it.
	UID uint32 `json:"uid"`
}

// Holder is a process that has a descriptor of a link.
type Holder = procfs.Holder

// Attachment is a program at a hook.
type Attachment struct {
	// Mode is Auto where it is not known: links don't say.
	Mode    Mode    `json:"mode"`
	Program Program `json:"program"`
	Held    Holding `json:"held"`
	// LinkID is 0 where no link holds it, or where the kernel does not let us
	// tell which: links don't say in which namespace their interface is.
	LinkID uint32 `json:"link_id,omitempty"`
	// Holders are the processes with a descriptor of the link, by pid, as far
	// as /proc shows them. [Hook.Query] leaves it empty.
	Holders []Holder `json:"holders,omitempty"`
	// Pins are the paths where the link is pinned, in every bpffs that the
	// process sees. [Hook.Query] leaves it empty.
	Pins []string `json:"pins,omitempty"`
}

// String names the program for a message.
func (p Program) String() string {
	s := fmt.Sprintf("program %d", p.ID)
	if p.Name != "" {
		s += fmt.Sprintf(" %q", p.Name)
	}
	if p.Tag != "" {
		s += fmt.Sprintf(" (tag %s)", p.Tag)
	}
	return s
}

// String describes the attachment for a message.
func (a *Attachment) String() string {
	var b strings.Builder
	b.WriteString(a.Program.String() + " is attached")
	if a.Mode != Auto {
		fmt.Fprintf(&b, " in %s mode", a.Mode)
	}
	switch {
	case a.LinkID != 0:
		fmt.Fprintf(&b, " and held by link %d", a.LinkID)
	case a.Held == HeldByLink:
		b.WriteString(" and held by a link")
	case a.Held == HeldByNetlink:
		b.WriteString(" by netlink")
	}
	var who []string
	for _, h := range a.Holders {
		who = append(who, fmt.Sprintf("process %d (%s)", h.PID, h.Comm))
	}
	for _, pin := range a.Pins {
		who = append(who, "pin "+pin)
	}
	if len(who) > 0 {
		b.WriteString(" of " + strings.Join(who, ", "))
	}
	return b.String()
}

// State is an interface and what is attached to it.
type State struct {
	Interface Interface `json:"interface"`
	// Attachments are in the order native, generic, offload.
	Attachments []Attachment `json:"attachments"`
}

// At is the attachment in that mode, or nil. For Auto it is the one that sees
// packets.
func (s State) At(m Mode) *Attachment {
	for i, a := range s.Attachments {
		if a.Mode == m || m == Auto && a.Mode != Offload {
			return &s.Attachments[i]
		}
	}
	return nil
}

// Query reads what is attached to the hook's interface, in all its modes. It
// changes nothing and prolongs no link's life by more than the reading takes.
// Interfaces and program ids can be read by anybody; names, tags and link ids
// need CAP_SYS_ADMIN.
func (h *Hook) Query() (State, error) {
	d, err := h.device("query")
	if err != nil {
		return State{}, err
	}
	return h.ns.observe(d, &observer{}), nil
}

// AttachedBy reads what the link attaches to the hook's interface, or nil where
// it does not: where nothing is attached, or another program. It is what Query
// would tell, but for the program's name and tag, and is asked with one call; who
// asks must know that the link was made for this very interface, because links
// don't say in which namespace theirs is.
func (h *Hook) AttachedBy(link LinkInfo) (*Attachment, error) {
	d, err := h.device("query")
	if err != nil || link.Index != h.index {
		return nil, err
	}
	for _, m := range []Mode{Native, Generic, Offload} {
		if id := Programs(d.XDP).At(m); id == link.ProgramID && id != 0 && (h.mode == Offload) == (m == Offload) {
			return &Attachment{Mode: m, Program: Program{ID: id}, Held: HeldByLink, LinkID: link.ID}, nil
		}
	}
	return nil, nil
}

// States reads all interfaces of the namespace that have a program.
func (ns *Namespace) States() ([]State, error) {
	devices, err := ns.conn.Devices()
	if err != nil {
		return nil, &Error{Op: "list interfaces", Err: ErrUnexpected, Detail: err.Error()}
	}
	var states []State
	o := &observer{}
	for _, d := range devices {
		if d.XDP != (rtnl.XDP{}) {
			states = append(states, ns.observe(d, o))
		}
	}
	return states, nil
}

func (h *Hook) device(op string) (rtnl.Device, error) {
	d, err := h.ns.conn.DeviceByIndex(h.index)
	switch {
	case rtnl.IsNotExist(err):
		return d, &Error{Op: op, Hook: h.String(), Err: ErrNotFound, Detail: interfaceGone, Hint: hintFindAnew}
	case err != nil:
		return d, &Error{Op: op, Hook: h.String(), Err: ErrUnexpected, Detail: err.Error()}
	}
	return d, nil
}

// observer reads what many attachments need only once.
type observer struct {
	links     map[uint32][]kernel.LinkInfo // by ifindex
	linksRead bool
	linksOK   bool
	programs  map[uint32]observed
}

// observed is a program, or what is left of one that is no longer loaded.
type observed struct {
	Program
	gone bool
}

// linksAt are the links, of all namespaces, at an interface of that index.
func (o *observer) linksAt(index int) (links []kernel.LinkInfo, ok bool) {
	if !o.linksRead {
		all, err := kernel.XDPLinks()
		o.links, o.linksOK, o.linksRead = make(map[uint32][]kernel.LinkInfo, len(all)), err == nil, true
		for _, l := range all {
			o.links[l.Ifindex] = append(o.links[l.Ifindex], l)
		}
	}
	return o.links[uint32(index)], o.linksOK
}

func (o *observer) program(id uint32) observed {
	if p, ok := o.programs[id]; ok {
		return p
	}
	if o.programs == nil {
		o.programs = map[uint32]observed{}
	}
	p := readProgram(id)
	o.programs[id] = p
	return p
}

func readProgram(id uint32) observed {
	p := observed{Program: Program{ID: id}}
	fd, err := kernel.ProgramByID(id)
	if err != nil {
		p.gone = errors.Is(err, unix.ENOENT)
		return p
	}
	defer fd.Close()
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		return p
	}
	p.Name, p.Tag, p.UID = info.Name, hex.EncodeToString(info.Tag[:]), info.UID
	p.LoadedAt = sinceBoot(info.LoadTime)
	return p
}

// Called tells whether the program has that name, of which the kernel keeps the
// first 15 bytes.
func (p Program) Called(name string) bool {
	return p.Name == name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)]
}

// LookUpProgram reads the loaded program of that id. Where there is none any
// more, or it may not be read, all but its id is empty.
func LookUpProgram(id uint32) Program { return readProgram(id).Program }

// sinceBoot turns the kernel's nanoseconds since boot into a time of day,
// to the second, because the two clocks are not read at once.
func sinceBoot(ns uint64) time.Time {
	var boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(ns) - time.Duration(boot.Nano())).Round(time.Second)
}

// observe reads what is attached to the device. That takes several calls, and
// somebody may replace or detach between them; and the kernel attaches a link's
// program a moment before it shows the link. What does not fit together is read
// anew, a few times.
func (ns *Namespace) observe(d rtnl.Device, o *observer) State {
	s, settled := ns.state(d, o)
	for pause := time.Duration(0); !settled && pause <= 32*time.Millisecond; pause = max(2*pause, time.Millisecond) {
		time.Sleep(pause)
		again, err := ns.conn.DeviceByIndex(d.Index)
		if err != nil {
			break
		}
		s, settled = ns.state(again, &observer{})
	}
	return s
}

func (ns *Namespace) state(d rtnl.Device, o *observer) (s State, settled bool) {
	s, settled = State{Interface: newInterface(d)}, true
	for _, m := range []Mode{Native, Generic, Offload} {
		id := s.Interface.Programs.At(m)
		if id == 0 {
			continue
		}
		program := o.program(id)
		a := Attachment{Mode: m, Program: program.Program}
		var known bool
		a.Held, a.LinkID, known = ns.held(d, m, o)
		settled = settled && known && !program.gone
		s.Attachments = append(s.Attachments, a)
	}
	return s, settled
}

// held tells whether a link holds the hook, and which. Links know an ifindex
// and a program but no namespace, so a link that fits may be another
// namespace's, and one that does not fit yet may be the one: what settles it is
// the kernel's answer to a detach that expects an empty hook. It refuses that
// before anything else where a link is in the way, then because the hook is not
// empty; and should the hook have become empty meanwhile, there is nothing to
// detach. settled is false if the links don't fit the answer, because something
// changed meanwhile.
func (ns *Namespace) held(d rtnl.Device, m Mode, o *observer) (how Holding, link uint32, settled bool) {
	err := ns.conn.ReplaceXDP(d.Index, -1, -1, m.flags())
	switch {
	case errors.Is(err, unix.EBUSY):
	case errors.Is(err, unix.EEXIST):
		return HeldByNetlink, 0, true
	default:
		return HeldUnknown, 0, err != nil
	}
	links, ok := o.linksAt(d.Index)
	var fitting []kernel.LinkInfo
	for _, l := range links {
		if l.ProgID == Programs(d.XDP).At(m) {
			fitting = append(fitting, l)
		}
	}
	switch {
	case len(fitting) != 1:
		return HeldByLink, 0, !ok || len(fitting) > 1
	case len(links) == 1:
		return HeldByLink, fitting[0].ID, true
	}
	// It fits, but the hook's own may be another that was updated between the
	// two readings.
	if again, err := ns.conn.DeviceByIndex(d.Index); err != nil || again.XDP != d.XDP {
		return HeldByLink, 0, false
	}
	return HeldByLink, fitting[0].ID, true
}

// FindHolders fills in the processes and pins that keep the attachments' links
// alive, as far as the caller may see them. It reads all of /proc and every
// bpffs once, which takes milliseconds to tenths of a second.
func FindHolders(attachments ...*Attachment) {
	byLink := map[uint32]*Attachment{}
	for _, a := range attachments {
		if a.LinkID != 0 {
			byLink[a.LinkID] = a
		}
	}
	if len(byLink) == 0 {
		return
	}
	// What can't be read is left out: the answer is for people, and says as
	// much as there is.
	if objects, err := procfs.Scan(); err == nil {
		for id, a := range byLink {
			a.Holders = objects.Links[id]
			procfs.Sort(a.Holders)
		}
	}
	mounts, _ := bpffs.Mounts()
	for _, mount := range mounts {
		_ = bpffs.WalkPins(mount, func(path string) {
			if info, ok := readPin(path); ok {
				if a := byLink[info.ID]; a != nil {
					a.Pins = append(a.Pins, path)
				}
			}
		})
	}
}

// readPin reads a pin that is an XDP link.
func readPin(path string) (kernel.LinkInfo, bool) {
	fd, err := kernel.OpenPin(path)
	if err != nil {
		return kernel.LinkInfo{}, false
	}
	defer fd.Close()
	if !kernel.IsLink(fd) {
		return kernel.LinkInfo{}, false
	}
	info, err := kernel.XDPLinkInfo(fd)
	return info, err == nil
}
