// Package inspect tells who holds what: every XDP program of the machine, in all
// network namespaces that can be found, with what keeps it there, since when, and
// what would happen to somebody who attached, replaced or detached there.
//
//	report, err := inspect.Look(inspect.Options{})
//	for _, f := range report.Findings {
//		fmt.Println(f.Interface, f.Program.Name, f.How, f.By.Processes, f.By.Pins)
//	}
//
// It makes no difference who attached a program, or with what. Looking changes
// nothing: a link or program is open for no longer than it takes to read it, and
// who holds which is read from /proc and from pins.
//
// What is seen is decided on by pure code; the system calls are in look.go.
package inspect

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-bpf/holdfast/xdp"
)

// How is a way in which a program is kept.
type How string

const (
	// ByProcess: a process has a descriptor of the link, or of a program that is
	// attached nowhere.
	ByProcess How = "process"
	// ByPin: it has a name in a bpffs.
	ByPin How = "pin"
	// ByNetlink: nobody holds it; it stays until somebody detaches it.
	ByNetlink How = "netlink"
	// ByLibxdp: by netlink, and it is a dispatcher of libxdp's protocol, whose
	// members are held by links of their own.
	ByLibxdp How = "libxdp chain"
	// InFlight: a link or program that is there although neither a process nor a
	// pin nor a hook has it: its descriptor was sent over a socket and has not been
	// received, or its holder can't be seen from here.
	InFlight How = "in flight"
	// ByMap: a program that is attached nowhere and that neither a process nor a
	// pin has: it is in a map of programs or devices, or in flight.
	ByMap How = "map or in flight"
	// Defunct: the link attaches nothing any more.
	Defunct How = "defunct"
	// Loaded: the program is attached nowhere.
	Loaded How = "not attached"
	// Empty: there is no program.
	Empty How = "empty"
	// Unknown: it can't be told without more privilege.
	Unknown How = "unknown"
)

// Process is a process that keeps something.
type Process struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	// Unit is the systemd unit, and Container the container, that its cgroup
	// belongs to; empty where there is none.
	Unit      string `json:"unit,omitempty"`
	Container string `json:"container,omitempty"`
	Cgroup    string `json:"cgroup,omitempty"`
	// Parent is its parent now, and Orphan tells that the process that started it
	// may have ended: what it holds it may have inherited.
	Parent int  `json:"ppid,omitempty"`
	Orphan bool `json:"orphan,omitempty"`
	// Started is when it started.
	Started time.Time `json:"started,omitzero"`
}

// String names the process for a message.
func (p Process) String() string {
	s := fmt.Sprintf("process %d (%s", p.PID, p.Comm)
	switch {
	case p.Container != "":
		s += ", container " + shortID(p.Container)
	case p.Unit != "":
		s += ", unit " + p.Unit
	}
	return s + ")"
}

// shortID is as much of a container's id as people use.
func shortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// Pin is a name of a link or program in a bpffs.
type Pin struct {
	// Path is the pin's, as those see it who see its bpffs.
	Path string `json:"path"`
	// PID is a process that sees the bpffs, where the caller does not: it is
	// mounted in another mount namespace. Reach leads to the pin from here as long
	// as that process lives.
	PID   int    `json:"pid,omitempty"`
	Comm  string `json:"comm,omitempty"`
	Reach string `json:"reach,omitempty"`
	// Since is when it was pinned.
	Since time.Time `json:"since,omitzero"`
}

// String names the pin for a message.
func (p Pin) String() string {
	if p.PID != 0 {
		return fmt.Sprintf("pin %s in the mounts of process %d (%s)", p.Path, p.PID, p.Comm)
	}
	return "pin " + p.Path
}

// Socket is a Unix socket that has descriptors under way to it, see [InFlight].
// Whether the one in question is among them the kernel does not tell.
type Socket struct {
	Process
	Inode       uint64 `json:"inode"`
	Descriptors int    `json:"descriptors"`
}

// Keepers are what keeps a link or a program.
type Keepers struct {
	Processes []Process `json:"processes,omitempty"`
	Pins      []Pin     `json:"pins,omitempty"`
	// Sockets are where it may be under way, of what is in flight.
	Sockets []Socket `json:"sockets,omitempty"`
}

func (k Keepers) none() bool { return len(k.Processes)+len(k.Pins) == 0 }

// how tells what of the two there is.
func (k Keepers) how() []How {
	var how []How
	if len(k.Processes) > 0 {
		how = append(how, ByProcess)
	}
	if len(k.Pins) > 0 {
		how = append(how, ByPin)
	}
	return how
}

// has tells whether the process is among them.
func (k Keepers) has(pid int) bool {
	return slices.ContainsFunc(k.Processes, func(p Process) bool { return p.PID == pid })
}

// Candidate is a link that may be the hook's.
type Candidate struct {
	LinkID uint32  `json:"link_id"`
	By     Keepers `json:"by"`
}

// Member is a program that runs in the place of one of a dispatcher's functions.
type Member struct {
	// Slot is the dispatcher's function that it replaces: members run in this
	// order. It is -1 where it can't be told.
	Slot    int         `json:"slot"`
	Program xdp.Program `json:"program"`
	LinkID  uint32      `json:"link_id"`
	How     []How       `json:"how"`
	By      Keepers     `json:"by"`
}

// Finding is a program, and how it is held; or a link that is defunct.
type Finding struct {
	// Namespace is what opens the network namespace, empty for the caller's.
	// Namespaces are all its names; one without a name is called by a process in
	// it, or by what keeps it. NamespaceID is as [xdp.Namespace.ID].
	Namespace   string   `json:"netns"`
	Namespaces  []string `json:"netns_names,omitempty"`
	NamespaceID string   `json:"netns_id,omitempty"`
	// Interface and Index are empty of what is attached nowhere.
	Interface string `json:"interface,omitempty"`
	Index     int    `json:"ifindex,omitempty"`
	// Mode is Auto of what is attached nowhere.
	Mode    xdp.Mode    `json:"mode"`
	Program xdp.Program `json:"program"`
	Held    xdp.Holding `json:"held,omitempty"`
	// LinkID is 0 where no link holds it, or several may; Candidates are those.
	LinkID     uint32      `json:"link_id,omitempty"`
	Candidates []Candidate `json:"candidates,omitempty"`
	How        []How       `json:"how"`
	// By is what keeps the attachment: its link; of a program that is attached
	// nowhere, the program.
	By Keepers `json:"by"`
	// Open is who has the program itself, which keeps it loaded, not attached.
	Open Keepers `json:"open"`
	// Since is when it was attached, and where that is not known when the program
	// was loaded, which SinceLoad tells.
	Since     time.Time `json:"since,omitzero"`
	SinceLoad bool      `json:"since_load,omitempty"`
	Members   []Member  `json:"members,omitempty"`
	// Notes are what people should know besides.
	Notes []string `json:"notes,omitempty"`
	// Would is what would happen, nil of what is attached nowhere.
	Would *Would `json:"would,omitempty"`

	state  xdp.State
	master *xdp.State
}

// Report is what Look finds.
type Report struct {
	// Findings are in the order of namespaces, the caller's first, and of
	// interfaces there; then what is attached nowhere, by program.
	Findings []Finding `json:"findings"`
	// Limits are what could not be looked at, and why.
	Limits []string `json:"limits,omitempty"`

	interfaces map[place]string
	// going are defunct links that nobody seems to keep.
	going []uint32
}

// place is an interface of the machine.
type place struct {
	namespace string // its ID
	index     int
}

// Interface is the name of the interface of that index in the namespace of that ID,
// if there is one.
func (r *Report) Interface(namespace string, index int) (name string, ok bool) {
	name, ok = r.interfaces[place{namespace, index}]
	return name, ok
}

// OfProcess tells whether the process keeps the finding, or one of its members.
func (f *Finding) OfProcess(pid int) bool {
	return f.any(func(k Keepers) bool { return k.has(pid) })
}

// OfProgram tells whether the program is the finding's, or one of its members'.
func (f *Finding) OfProgram(id uint32) bool {
	return f.Program.ID == id || slices.ContainsFunc(f.Members, func(m Member) bool { return m.Program.ID == id })
}

// OfLink tells whether the link is the finding's, may be, or is one of its members'.
func (f *Finding) OfLink(id uint32) bool {
	return f.LinkID == id ||
		slices.ContainsFunc(f.Candidates, func(c Candidate) bool { return c.LinkID == id }) ||
		slices.ContainsFunc(f.Members, func(m Member) bool { return m.LinkID == id })
}

func (f *Finding) any(is func(Keepers) bool) bool {
	return is(f.By) || is(f.Open) ||
		slices.ContainsFunc(f.Candidates, func(c Candidate) bool { return is(c.By) }) ||
		slices.ContainsFunc(f.Members, func(m Member) bool { return is(m.By) })
}

// note adds what people should know.
func (f *Finding) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(f.Notes, n) {
		f.Notes = append(f.Notes, n)
	}
}
