package inspect

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"

	"github.com/holdfast-bpf/holdfast/xdp"
)

// sight is what was seen, in pieces.
type sight struct {
	namespaces []namespace
	links      []xdp.LinkInfo
	extensions []extension
	// programs are those of the XDP hook, and extensions, by id.
	programs map[uint32]program
	// linksOf and programsOf are the processes that have a descriptor, by id.
	linksOf, programsOf map[uint32][]Process
	pins                []pin
	// sockets are those with descriptors under way, once they were searched.
	sockets  []Socket
	searched bool
	// complete tells that no process was hidden from us.
	complete bool
	// cut tells that there was too much to look at all of it, as there would be again.
	cut    bool
	limits []string
}

// namespace is a network namespace as it was seen.
type namespace struct {
	spec, id   string
	names      []string
	interfaces []xdp.Interface
	states     []xdp.State
	// native are the interfaces, by index, whose drivers run programs natively, of
	// those that have one in generic mode.
	native map[int]bool
}

// extension is the link of one.
type extension struct {
	link, program, target uint32
	slot                  int // -1 where the kernel does not tell
}

type program struct {
	xdp.Program
	extension bool
}

// pin is one of a link or program.
type pin struct {
	Pin
	link, program uint32 // one of them is 0
}

// The names that dispatchers have.
const (
	libxdpDispatcher = "xdp_dispatcher"
	liveDispatcher   = "holdfast_live"
)

// decide makes a report of what was seen. Interfaces of those names are told of
// also where they are empty.
func decide(s *sight, names []string) *Report {
	r := &Report{Findings: []Finding{}, Limits: s.limits, interfaces: map[place]string{}}
	d := decider{sight: s, told: map[uint32]bool{}, linked: map[uint32]bool{}}
	for _, ns := range s.namespaces {
		for _, i := range ns.interfaces {
			r.interfaces[place{ns.id, i.Index}] = i.Name
		}
		r.Findings = append(r.Findings, d.attached(ns, names)...)
	}
	for _, l := range s.links {
		if l.Defunct() {
			r.Findings = append(r.Findings, d.defunct(l)...)
		} else if !d.linked[l.ID] {
			r.Findings = append(r.Findings, d.elsewhere(l))
		}
	}
	r.Findings = append(r.Findings, d.loaded()...)
	r.going = d.going
	return r
}

// decider remembers what was told already.
type decider struct {
	*sight
	told   map[uint32]bool // programs
	linked map[uint32]bool // links that are a hook's
	going  []uint32        // defunct links that nobody seems to keep
}

func (d *decider) attached(ns namespace, names []string) []Finding {
	var all []Finding
	states := map[int]xdp.State{}
	for _, s := range ns.states {
		states[s.Interface.Index] = s
	}
	for _, i := range ns.interfaces {
		s, ok := states[i.Index]
		if !ok {
			s = xdp.State{Interface: i}
		}
		var master *xdp.State
		if m, ok := states[i.Master]; ok && i.Master != 0 {
			master = &m
		}
		at := Finding{
			Namespace: ns.spec, Namespaces: ns.names, NamespaceID: ns.id,
			Interface: i.Name, Index: i.Index, state: s, master: master,
		}
		if len(s.Attachments) == 0 && slices.Contains(names, i.Name) {
			at.How = []How{Empty}
			at.foresee(nil)
			all = append(all, at)
		}
		for _, a := range s.Attachments {
			f := at
			f.Mode, f.Program, f.Held, f.LinkID = a.Mode, a.Program, a.Held, a.LinkID
			d.fill(&f)
			if a.Mode == xdp.Generic && ns.native[i.Index] {
				f.note("it runs in generic mode, which is slower, and the driver of %s runs programs natively", i.Name)
			}
			f.foresee(nil)
			all = append(all, f)
		}
	}
	return all
}

// fill adds how what is attached is held, and by whom.
func (d *decider) fill(f *Finding) {
	d.told[f.Program.ID] = true
	f.Since, f.SinceLoad = f.Program.LoadedAt, !f.Program.LoadedAt.IsZero()
	f.Open = d.ofProgram(f.Program.ID)
	f.Members = d.members(f)
	switch f.Held {
	case xdp.HeldByNetlink:
		f.How = []How{ByNetlink}
		if f.Program.Name == libxdpDispatcher {
			f.How = []How{ByLibxdp}
		}
	case xdp.HeldByLink:
		d.fillLink(f)
	default:
		f.How = []How{Unknown}
		f.note(cantTell)
	}
}

// fillLink adds who keeps the link, or the links that it may be.
func (d *decider) fillLink(f *Finding) {
	if f.LinkID != 0 {
		d.linked[f.LinkID] = true
		f.By = d.ofLink(f.LinkID)
		f.How = d.kept(f, f.By)
		return
	}
	for _, l := range d.links {
		if l.Index == f.Index && l.ProgramID == f.Program.ID {
			d.linked[l.ID] = true
			f.Candidates = append(f.Candidates, Candidate{l.ID, d.ofLink(l.ID)})
		}
	}
	switch len(f.Candidates) {
	case 0:
		f.How = []How{Unknown}
		f.note("a link holds it, and which can't be told: that takes CAP_SYS_ADMIN")
		return
	case 1:
		f.LinkID, f.By = f.Candidates[0].LinkID, f.Candidates[0].By
		f.Candidates = nil
		f.How = d.kept(f, f.By)
		return
	}
	f.note("one of %d links holds it: each attaches this program to an interface of this index, in some network namespace, and the kernel does not tell in which",
		len(f.Candidates))
	for _, c := range f.Candidates {
		for _, h := range d.kept(f, c.By) {
			if !slices.Contains(f.How, h) {
				f.How = append(f.How, h)
			}
		}
	}
}

// kept is how a link is held by what keeps it. Of one in flight the finding gets
// where it may be.
func (d *decider) kept(f *Finding, k Keepers) []How {
	for _, p := range k.Processes {
		if p.Orphan {
			f.note("%s may have been started by one that has ended, and have what it holds from that", p)
		}
	}
	if !k.none() {
		return k.how()
	}
	f.By.Sockets = d.sockets
	switch {
	case len(d.sockets) > 0:
		f.note("no process and no pin has its link: its descriptor was sent and is not received yet, by one of the sockets that have some under way")
	case d.complete && d.searched:
		f.note("no process and no pin has its link, and no socket has a descriptor under way: it is where the kernel does not show it, such as the registered files of an io_uring, or a thread's own descriptors")
	}
	if !d.complete {
		f.note("not all processes can be seen from here: its link may be another's")
	}
	return []How{InFlight}
}

// members are the extensions of the finding's program.
func (d *decider) members(f *Finding) []Member {
	var all []Member
	for _, e := range d.extensions {
		if e.target != f.Program.ID {
			continue
		}
		d.told[e.program] = true
		m := Member{Slot: e.slot, Program: d.programs[e.program].Program, LinkID: e.link, By: d.ofLink(e.link)}
		m.Program.ID = e.program
		if m.How = m.By.how(); m.How == nil {
			m.How, m.By.Sockets = []How{InFlight}, d.sockets
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.LinkID, b.LinkID))
	})
	return all
}

// defunct are no findings where nobody keeps the link: it is about to go.
func (d *decider) defunct(l xdp.LinkInfo) []Finding {
	f := Finding{Held: xdp.HeldByLink, LinkID: l.ID, By: d.ofLink(l.ID), How: []How{Defunct}}
	f.Program = d.program(l.ProgramID)
	d.told[l.ProgramID] = true
	f.Since, f.SinceLoad = f.Program.LoadedAt, !f.Program.LoadedAt.IsZero()
	f.Open = d.ofProgram(l.ProgramID)
	if f.By.none() && len(d.sockets) == 0 {
		d.going = append(d.going, l.ID)
		return nil
	}
	f.How = append(f.How, d.kept(&f, f.By)...)
	f.note("it attaches nothing any more: its interface is gone, or another root detached it by force")
	return []Finding{f}
}

// elsewhere is a link that attaches its program in a namespace that was not seen.
func (d *decider) elsewhere(l xdp.LinkInfo) Finding {
	f := Finding{Held: xdp.HeldByLink, LinkID: l.ID, Index: l.Index, By: d.ofLink(l.ID)}
	f.Program = d.program(l.ProgramID)
	d.told[l.ProgramID] = true
	f.Since, f.SinceLoad = f.Program.LoadedAt, !f.Program.LoadedAt.IsZero()
	f.Open = d.ofProgram(l.ProgramID)
	f.How = d.kept(&f, f.By)
	f.note("it is attached to interface %d of a network namespace that can't be seen from here", l.Index)
	return f
}

// loaded are the programs that are attached nowhere.
func (d *decider) loaded() []Finding {
	linkOf := map[uint32]uint32{}
	for _, e := range d.extensions {
		linkOf[e.program] = e.link
	}
	var all []Finding
	for id, p := range d.programs {
		if d.told[id] {
			continue
		}
		f := Finding{Program: p.Program, By: d.ofProgram(id), How: []How{Loaded}}
		f.Since, f.SinceLoad = f.Program.LoadedAt, !f.Program.LoadedAt.IsZero()
		if link := linkOf[id]; link != 0 {
			f.LinkID, f.Held = link, xdp.HeldByLink
			f.Open, f.By = f.By, d.ofLink(link)
			f.note("it replaces a function of a program that is attached to no hook, or that the kernel does not tell, before Linux 5.13")
		}
		if f.By.none() {
			f.How, f.By.Sockets = append(f.How, ByMap), d.sockets
		}
		f.How = append(f.How, f.By.how()...)
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Finding) int { return cmp.Compare(a.Program.ID, b.Program.ID) })
	return all
}

// program is the program of that id, of which there may be nothing but the id.
func (d *decider) program(id uint32) xdp.Program {
	if p, ok := d.programs[id]; ok {
		return p.Program
	}
	return xdp.Program{ID: id}
}

func (d *decider) ofLink(id uint32) Keepers {
	return Keepers{Processes: d.linksOf[id], Pins: d.pinsOf(func(p pin) bool { return p.link == id })}
}

func (d *decider) ofProgram(id uint32) Keepers {
	return Keepers{Processes: d.programsOf[id], Pins: d.pinsOf(func(p pin) bool { return p.program == id })}
}

func (d *decider) pinsOf(is func(pin) bool) []Pin {
	var pins []Pin
	for _, p := range d.pins {
		if is(p) {
			pins = append(pins, p.Pin)
		}
	}
	return pins
}

// Where an extension is, by its link's pin: libxdp's protocol has the dispatcher's
// interface, program and slot in the path, and Holdfast's state its program and
// slot.
var (
	libxdpPin = regexp.MustCompile(`/dispatch-\d+-(\d+)/prog(\d+)-link$`)
	livePin   = regexp.MustCompile(`/link-(\d+)-(\d+)$`)
)

// slotOfPin reads the dispatcher and the slot from the path of a link's pin.
func slotOfPin(path string) (target uint32, slot int, ok bool) {
	for _, form := range []*regexp.Regexp{libxdpPin, livePin} {
		m := form.FindStringSubmatch(path)
		if m == nil {
			continue
		}
		t, err1 := strconv.ParseUint(m[1], 10, 32)
		s, err2 := strconv.ParseUint(m[2], 10, 16)
		return uint32(t), int(s), err1 == nil && err2 == nil
	}
	return 0, 0, false
}

// placeByPins tells of extensions where they are as far as pins do, for kernels that tell
// nothing.
func placeByPins(extensions []extension, pins []pin) {
	for i := range extensions {
		e := &extensions[i]
		if e.target != 0 {
			continue
		}
		for _, p := range pins {
			if target, slot, ok := slotOfPin(p.Path); ok && p.link == e.link {
				e.target, e.slot = target, slot
			}
		}
	}
}

// slotOfFunction reads the number in a dispatcher's function, such as "prog3".
func slotOfFunction(name string) int {
	end := len(name)
	begin := end
	for begin > 0 && name[begin-1] >= '0' && name[begin-1] <= '9' {
		begin--
	}
	n, err := strconv.ParseUint(name[begin:end], 10, 16)
	if err != nil {
		return -1
	}
	return int(n)
}

// unaccounted are the links and programs that nothing was found to keep. What was
// looked at one after the other may have changed in between.
func (r *Report) unaccounted() []uint64 {
	var ids []uint64
	add := func(how []How, link, program uint32) {
		if slices.Contains(how, InFlight) || slices.Contains(how, ByMap) {
			ids = append(ids, uint64(link)<<32|uint64(program))
		}
	}
	for _, f := range r.Findings {
		add(f.How, f.LinkID, f.Program.ID)
		for _, m := range f.Members {
			add(m.How, m.LinkID, m.Program.ID)
		}
		if f.Interface == "" && f.Index != 0 {
			ids = append(ids, uint64(f.LinkID)<<32)
		}
	}
	for _, link := range r.going {
		ids = append(ids, uint64(link)<<32)
	}
	slices.Sort(ids)
	return ids
}
