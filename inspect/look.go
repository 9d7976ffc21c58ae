package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/peer"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Options say what Look is to tell besides.
type Options struct {
	// Interfaces are names of interfaces that are told of also where nothing is
	// attached, so that what would happen there can be seen.
	Interfaces []string
}

// looks is how often the machine is looked at to find out who has what nobody
// seemed to have.
const looks = 5

// maxEntries and maxWalk bound how long pins are looked for: anybody may mount a
// bpffs, and fill it.
const (
	maxEntries = 1_000_000
	maxWalk    = 10 * time.Second
)

// Look looks at the whole machine. As root it sees everything; others see what is
// attached, and the report says what they can't. A process that hands a descriptor
// on while it is looked at is not taken for none: what nobody seems to have is
// looked for again.
//
// It reads all of /proc and every bpffs, which takes milliseconds to tenths of a
// second. Since Linux 5.10.
func Look(o Options) (*Report, error) {
	return settle(o.Interfaces, look, inFlight, func(n int) {
		// What has ended may be there still: the kernel frees it later.
		_ = kernel.AwaitGracePeriod()
		time.Sleep(time.Duration(n) * 5 * time.Millisecond)
	})
}

// settle looks until what nobody seems to have is the same twice, or for as often as
// looks says, and then for sockets that may have it.
func settle(names []string, look func() (*sight, error), inFlight func() ([]Socket, error), pause func(n int)) (*Report, error) {
	var last []uint64
	for n := 1; ; n++ {
		s, err := look()
		if err != nil {
			return nil, err
		}
		r := decide(s, names)
		ids := r.unaccounted()
		if len(ids) == 0 {
			return r, nil
		}
		if n == looks || s.cut || n > 1 && slices.Equal(ids, last) {
			if s.sockets, err = inFlight(); err != nil {
				s.limits = append(s.limits, "sockets with descriptors under way can't be looked for: "+err.Error())
			}
			s.searched = err == nil
			return decide(s, names), nil
		}
		last = ids
		pause(n)
	}
}

// look sees what there is. Hooks come first: who holds what is at one of them is
// looked up afterwards, so that it was held then.
func look() (*sight, error) {
	s := &sight{programs: map[uint32]program{}, complete: procfs.SeesAll()}
	switch {
	case os.Geteuid() != 0:
		s.limits = append(s.limits, "who holds what is seen of this user's own processes only: the others take root")
	case !s.complete:
		s.limits = append(s.limits, "only the processes of this process namespace are seen: for all of the machine it takes the first one")
	}
	s.lookAtNamespaces()
	links, err := xdp.Links()
	if err != nil {
		s.limits = append(s.limits, "links and names of programs can't be read: "+err.Error())
	} else {
		s.links = links
		s.lookAtPrograms()
	}
	objects, err := procfs.Scan()
	if err != nil {
		return nil, fmt.Errorf("find out which processes hold links and programs: %w", err)
	}
	people := people{}
	s.linksOf, s.programsOf = people.all(objects.Links), people.all(objects.Programs)
	s.lookAtPins()
	s.lookAtExtensions()
	return s, nil
}

// lookAtNamespaces looks into every network namespace that can be found.
func (s *sight) lookAtNamespaces() {
	denied := 0
	for ns, err := range xdp.Namespaces() {
		switch {
		case errors.Is(err, xdp.ErrPermission):
			denied++
			continue
		case err != nil:
			s.limits = append(s.limits, err.Error())
			continue
		}
		n, err := lookInto(ns)
		// It is open no longer than that: this may be the last that keeps it.
		ns.Close()
		if err != nil {
			// One that changes all the time must not hide the others.
			s.limits = append(s.limits, fmt.Sprintf("network namespace %s can't be looked into: %v", cmp.Or(ns.Spec(), "of this process"), err))
			continue
		}
		s.namespaces = append(s.namespaces, *n)
	}
	if denied > 0 {
		s.limits = append(s.limits, fmt.Sprintf("%d network namespaces can't be entered, which takes CAP_SYS_ADMIN", denied))
	}
}

func lookInto(ns *xdp.Namespace) (n *namespace, err error) {
	n = &namespace{spec: ns.Spec(), id: ns.ID(), names: ns.Names(), native: map[int]bool{}}
	if n.interfaces, err = ns.Interfaces(); err != nil {
		return nil, err
	}
	if n.states, err = ns.States(); err != nil {
		return nil, err
	}
	for _, i := range n.interfaces {
		if i.Programs.Generic != 0 {
			n.native[i.Index] = runsNatively(ns, i)
		}
	}
	if !mastersMatter() {
		for k := range n.interfaces {
			n.interfaces[k].Master = 0
		}
	}
	return n, nil
}

// runsNatively tells whether the interface's driver is known to run programs
// natively.
func runsNatively(ns *xdp.Namespace, i xdp.Interface) bool {
	f, err := ns.File()
	if err != nil {
		return false
	}
	defer f.Close()
	can, err := rtnl.ReadXDPFeatures(int(f.Fd()), i.Index)
	if errors.Is(err, rtnl.ErrNoNetdev) {
		// Those that do so on every kernel that we run on.
		return i.Kind == "veth" || i.Kind == "tun"
	}
	return err == nil && can.Has(rtnl.XDPBasic)
}

// mastersMatter tells whether the kernel allows a program at a port or at its
// master only: since Linux 5.15.
func mastersMatter() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > 5 || major == 5 && minor >= 15
}

// The types of programs that matter here.
const (
	typeXDP       = unix.BPF_PROG_TYPE_XDP
	typeExtension = unix.BPF_PROG_TYPE_EXT
)

func (s *sight) lookAtPrograms() {
	for id := uint32(0); ; {
		next, err := kernel.NextProgramID(id)
		if errors.Is(err, unix.ENOENT) {
			return
		}
		if err != nil {
			s.limits = append(s.limits, "not all programs can be listed: "+err.Error())
			return
		}
		id = next
		if typ, ok := programType(id); ok && (typ == typeXDP || typ == typeExtension) {
			s.programs[id] = program{xdp.LookUpProgram(id), typ == typeExtension}
		}
	}
}

func programType(id uint32) (uint32, bool) {
	fd, err := kernel.ProgramByID(id)
	if err != nil {
		return 0, false
	}
	defer fd.Close()
	info, err := kernel.ReadProgram(fd)
	return info.Type, err == nil
}

// lookAtExtensions comes after the pins, which tell where extensions are that the
// kernel does not tell of.
func (s *sight) lookAtExtensions() {
	links, err := kernel.ExtensionLinks()
	if err != nil {
		return // said of links already
	}
	types := map[uint32]*btf.Spec{}
	for _, l := range links {
		e := extension{link: l.ID, program: l.ProgID, target: l.TargetID, slot: -1}
		if l.TargetID != 0 {
			t, ok := types[l.TargetID]
			if !ok {
				t = typesOf(l.TargetID)
				types[l.TargetID] = t
			}
			if t != nil {
				if f, err := t.TypeByID(btf.TypeID(l.Function)); err == nil {
					e.slot = slotOfFunction(f.TypeName())
				}
			}
		}
		s.extensions = append(s.extensions, e)
	}
	placeByPins(s.extensions, s.pins)
}

// typesOf are the types of a program, nil where they can't be read.
func typesOf(id uint32) *btf.Spec {
	fd, err := kernel.ProgramByID(id)
	if err != nil {
		return nil
	}
	info, err := kernel.ReadProgram(fd)
	fd.Close()
	if err != nil || info.BTFID == 0 {
		return nil
	}
	h, err := btf.NewHandleFromID(btf.ID(info.BTFID))
	if err != nil {
		return nil
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil
	}
	return spec
}

// lookAtPins looks at the links and programs in every bpffs that a process sees.
func (s *sight) lookAtPins() {
	type file struct{ device, inode uint64 }
	seen := map[file]bool{}
	budget := &bpffs.Budget{Entries: maxEntries, Until: time.Now().Add(maxWalk)}
	skipped, err := bpffs.Everywhere(budget, func(at bpffs.Place, root *bpffs.Root) {
		comm := ""
		if at.PID != 0 {
			comm = procfs.Comm(at.PID)
		}
		root.WalkPins(budget, func(name, path string) {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || seen[file{st.Dev, st.Ino}] {
				return
			}
			p, ok := readPin(path)
			if !ok {
				return
			}
			seen[file{st.Dev, st.Ino}] = true
			name = "/" + name
			p.Pin = Pin{Path: at.Path + name, Since: time.Unix(st.Ctim.Unix()).Round(time.Second)}
			if at.PID != 0 {
				p.PID, p.Comm, p.Reach = at.PID, comm, at.Name()+name
			}
			s.pins = append(s.pins, p)
		})
	})
	if err != nil {
		s.limits = append(s.limits, "pins can't be looked for: "+err.Error())
	}
	if skipped > 0 {
		s.limits = append(s.limits, fmt.Sprintf("pins can't be looked for everywhere in %d mount namespaces: their roots or mounts can't be opened", skipped))
	}
	if s.cut = budget.Spent(); s.cut {
		s.limits = append(s.limits, fmt.Sprintf("not all pins were looked for: there are more than %d names and mounts, or it takes longer than %s", maxEntries, maxWalk))
	}
}

// readPin reads a pin that is a link or a program.
func readPin(path string) (p pin, ok bool) {
	fd, err := kernel.OpenPin(path)
	if err != nil {
		return p, false
	}
	defer fd.Close()
	switch {
	case kernel.IsLink(fd):
		if info, err := kernel.XDPLinkInfo(fd); err == nil {
			p.link = info.ID
		} else if info, err := kernel.ReadExtensionLink(fd); err == nil {
			p.link = info.ID
		}
	case kernel.IsProgram(fd):
		if info, err := kernel.ReadProgram(fd); err == nil && (info.Type == typeXDP || info.Type == typeExtension) {
			p.program = info.ID
		}
	}
	return p, p.link != 0 || p.program != 0
}

// Pinned tells which link or program is pinned at the path; the other is 0. The
// error is [xdp.ErrNotFound] where there is no pin, and xdp.ErrInvalid of what is
// neither an XDP program or extension nor the link of one.
func Pinned(path string) (link, program uint32, err error) {
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return 0, 0, &xdp.Error{Op: "look at pin", Hook: path, Err: xdp.ErrNotFound, Detail: "there is no such pin", Hint: "`holdfast who` lists those that hold programs"}
	}
	p, ok := readPin(path)
	if !ok {
		return 0, 0, &xdp.Error{Op: "look at pin", Hook: path, Err: xdp.ErrInvalid, Detail: "it is no pin of an XDP program or of its link, or may not be read"}
	}
	return p.link, p.program, nil
}

// people are processes that were looked at, by pid.
type people map[int]Process

func (p people) all(holders map[uint32][]procfs.Holder) map[uint32][]Process {
	all := map[uint32][]Process{}
	for id, hs := range holders {
		procfs.Sort(hs)
		for _, h := range hs {
			all[id] = append(all[id], p.of(h))
		}
	}
	return all
}

func (p people) of(h procfs.Holder) Process {
	if known, ok := p[h.PID]; ok {
		return known
	}
	process := Process{PID: h.PID, Comm: h.Comm}
	if d, err := procfs.ReadDetails(h.PID); err == nil {
		process.Parent, process.Started, process.Cgroup = d.Parent, d.Started, d.Cgroup
		process.Orphan = d.Orphan
		process.Unit, process.Container = peer.Unit(d.Cgroup), peer.Container(d.Cgroup)
	}
	p[h.PID] = process
	return process
}

func inFlight() ([]Socket, error) {
	found, err := procfs.InFlight()
	if err != nil {
		return nil, err
	}
	var sockets []Socket
	people := people{}
	for _, f := range found {
		sockets = append(sockets, Socket{people.of(f.Holder), f.Inode, f.Descriptors})
	}
	return sockets, nil
}
