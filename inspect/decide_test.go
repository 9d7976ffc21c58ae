package inspect

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var loaded = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)

// at is an interface with one attachment.
func at(name string, index int, a xdp.Attachment) xdp.State {
	i := xdp.Interface{Name: name, Index: index}
	i.Programs.Native = a.Program.ID
	return xdp.State{Interface: i, Attachments: []xdp.Attachment{a}}
}

// space is a namespace with those interfaces.
func space(spec, id string, states ...xdp.State) namespace {
	n := namespace{spec: spec, id: id, native: map[int]bool{}}
	for _, s := range states {
		n.interfaces = append(n.interfaces, s.Interface)
		if len(s.Attachments) > 0 {
			n.states = append(n.states, s)
		}
	}
	return n
}

func native(id uint32, held xdp.Holding, link uint32) xdp.Attachment {
	return xdp.Attachment{Mode: xdp.Native, Program: xdp.Program{ID: id, Name: fmt.Sprintf("p%d", id), LoadedAt: loaded}, Held: held, LinkID: link}
}

func process(pid int) Process { return Process{PID: pid, Comm: "agent"} }

func only(t *testing.T, r *Report) Finding {
	t.Helper()
	if len(r.Findings) != 1 {
		t.Fatalf("there are %d findings, want one: %+v", len(r.Findings), r.Findings)
	}
	return r.Findings[0]
}

func TestTheDispatchersNameIsThatOfTheProtocol(t *testing.T) {
	if libxdpDispatcher != libxdp.DispatcherName {
		t.Errorf("%q is looked for, and dispatchers are called %q", libxdpDispatcher, libxdp.DispatcherName)
	}
}

func TestHowALinkIsHeldIsWhatKeepsIt(t *testing.T) {
	socket := Socket{Process: process(9), Inode: 4711, Descriptors: 2}
	for _, c := range []struct {
		name    string
		sight   sight
		how     []How
		note    string // empty for none
		sockets int
	}{
		{"a process", sight{linksOf: map[uint32][]Process{7: {process(3)}}, complete: true}, []How{ByProcess}, "", 0},
		{"an orphan", sight{linksOf: map[uint32][]Process{7: {{PID: 3, Comm: "agent", Orphan: true}}}}, []How{ByProcess}, "process 3 (agent) may have been started by one that has ended", 0},
		{"a pin", sight{pins: []pin{{Pin: Pin{Path: "/a"}, link: 7}}}, []How{ByPin}, "", 0},
		{"both", sight{linksOf: map[uint32][]Process{7: {process(3)}}, pins: []pin{{Pin: Pin{Path: "/a"}, link: 7}}}, []How{ByProcess, ByPin}, "", 0},
		{"others' pins and processes", sight{linksOf: map[uint32][]Process{8: {process(3)}}, pins: []pin{{Pin: Pin{Path: "/a"}, link: 8}, {Pin: Pin{Path: "/b"}, program: 7}}, complete: true, searched: true}, []How{InFlight}, "no socket has a descriptor under way", 0},
		{"a socket", sight{sockets: []Socket{socket}, complete: true}, []How{InFlight}, "was sent and is not received yet", 1},
		{"nobody yet", sight{complete: true}, []How{InFlight}, "", 0},
		{"nobody that can be seen", sight{}, []How{InFlight}, "not all processes can be seen", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.sight.namespaces = []namespace{space("", "c1", at("eth0", 2, native(42, xdp.HeldByLink, 7)))}
			c.sight.links = []xdp.LinkInfo{{ID: 7, ProgramID: 42, Index: 2}}
			f := only(t, decide(&c.sight, nil))
			if !slices.Equal(f.How, c.how) || f.LinkID != 7 || len(f.By.Sockets) != c.sockets {
				t.Errorf("it is %+v, want %q", f, c.how)
			}
			if notes := strings.Join(f.Notes, "\n"); (notes == "") != (c.note == "") || !strings.Contains(notes, c.note) {
				t.Errorf("the notes are %q, want %q", notes, c.note)
			}
			if inFlight := slices.Contains(f.How, InFlight); inFlight != (len(decide(&c.sight, nil).unaccounted()) > 0) {
				t.Error("what nobody is seen to have is not looked for again, or what somebody has is")
			}
		})
	}
}

func TestTwoHooksThatOneOfTwoLinksHoldsEachGetBoth(t *testing.T) {
	s := &sight{
		namespaces: []namespace{
			space("", "c1", at("eth0", 2, native(42, xdp.HeldByLink, 0))),
			space("blue", "c2", at("eth0", 2, native(42, xdp.HeldByLink, 0))),
		},
		links:   []xdp.LinkInfo{{ID: 7, ProgramID: 42, Index: 2}, {ID: 8, ProgramID: 42, Index: 2}, {ID: 9, ProgramID: 42, Index: 3}},
		linksOf: map[uint32][]Process{7: {process(3)}, 9: {process(5)}},
		pins:    []pin{{Pin: Pin{Path: "/a"}, link: 8}},
	}
	r := decide(s, nil)
	if len(r.Findings) != 3 {
		t.Fatalf("there are %d findings, want two hooks and link 9: %+v", len(r.Findings), r.Findings)
	}
	for _, f := range r.Findings[:2] {
		if len(f.Candidates) != 2 || f.LinkID != 0 || !f.OfLink(7) || !f.OfLink(8) || f.OfLink(9) || !f.OfProcess(3) || !slices.Equal(f.How, []How{ByProcess, ByPin}) {
			t.Errorf("it is %+v, want link 7 or 8", f)
		}
	}
	if f := r.Findings[2]; f.LinkID != 9 || f.Interface != "" || f.Index != 3 || f.Would != nil || !f.OfProcess(5) {
		t.Errorf("it is %+v, want link 9 in a namespace that is not found", f)
	}
}

func TestAHookWhoseLinkWasOneOfManyIsThatOfTheOnlyOneThatFits(t *testing.T) {
	s := &sight{
		namespaces: []namespace{space("", "c1", at("eth0", 2, native(42, xdp.HeldByLink, 0)))},
		links:      []xdp.LinkInfo{{ID: 7, ProgramID: 42, Index: 2}},
		linksOf:    map[uint32][]Process{7: {process(3)}},
	}
	if f := only(t, decide(s, nil)); f.LinkID != 7 || len(f.Candidates) != 0 || !f.OfProcess(3) {
		t.Errorf("it is %+v, want link 7", f)
	}
	s.links, s.linksOf = nil, nil
	if f := only(t, decide(s, nil)); !slices.Equal(f.How, []How{Unknown}) {
		t.Errorf("it is %+v, want that it can't be told", f)
	}
}

func TestMembersAreToldWithTheirDispatcherInTheOrderThatTheyRunIn(t *testing.T) {
	s := &sight{
		namespaces: []namespace{space("", "c1", xdp.State{
			Interface:   xdp.Interface{Name: "eth0", Index: 2, Programs: xdp.Programs{Native: 50}},
			Attachments: []xdp.Attachment{{Mode: xdp.Native, Program: xdp.Program{ID: 50, Name: "xdp_dispatcher"}, Held: xdp.HeldByNetlink}},
		})},
		programs: map[uint32]program{
			50: {Program: xdp.Program{ID: 50, Name: "xdp_dispatcher"}},
			51: {xdp.Program{ID: 51, Name: "second"}, true}, 52: {xdp.Program{ID: 52, Name: "first"}, true},
			53: {xdp.Program{ID: 53, Name: "stray"}, true},
		},
		extensions: []extension{{20, 51, 0, -1}, {21, 52, 50, 0}, {22, 53, 0, -1}},
		pins: []pin{
			{Pin: Pin{Path: "/sys/fs/bpf/xdp/dispatch-2-50/prog1-link"}, link: 20},
			{Pin: Pin{Path: "/sys/fs/bpf/xdp/dispatch-2-50/prog0-link"}, link: 21},
		},
	}
	placeByPins(s.extensions, s.pins)
	r := decide(s, nil)
	if len(r.Findings) != 2 {
		t.Fatalf("there are %d findings, want the chain and the stray: %+v", len(r.Findings), r.Findings)
	}
	f := r.Findings[0]
	if !slices.Equal(f.How, []How{ByLibxdp}) || len(f.Members) != 2 || f.Members[0].Program.Name != "first" || f.Members[1].Program.Name != "second" {
		t.Errorf("it is %+v, want first and second", f)
	}
	if !f.OfProgram(51) || !f.OfLink(20) || f.OfProgram(53) {
		t.Error("its members are not found, or others are")
	}
	if f := r.Findings[1]; f.Program.Name != "stray" || f.LinkID != 22 || len(f.Notes) == 0 {
		t.Errorf("it is %+v, want the stray", f)
	}
}

func TestADefunctLinkIsToldAsLongAsSomebodyKeepsIt(t *testing.T) {
	s := &sight{
		links:    []xdp.LinkInfo{{ID: 7, ProgramID: 42}, {ID: 8, ProgramID: 43}},
		programs: map[uint32]program{42: {Program: xdp.Program{ID: 42, Name: "left", LoadedAt: loaded}}},
		linksOf:  map[uint32][]Process{7: {process(3)}},
	}
	f := only(t, decide(s, nil))
	if f.LinkID != 7 || f.Program.Name != "left" || !slices.Equal(f.How, []How{Defunct, ByProcess}) || f.Would != nil {
		t.Errorf("it is %+v, want link 7", f)
	}
}

func TestAProgramThatIsAttachedNowhereIsToldOnce(t *testing.T) {
	s := &sight{
		namespaces: []namespace{space("", "c1", at("eth0", 2, native(42, xdp.HeldByNetlink, 0)))},
		programs: map[uint32]program{
			42: {Program: xdp.Program{ID: 42}}, 43: {Program: xdp.Program{ID: 43}}, 44: {Program: xdp.Program{ID: 44}},
		},
		programsOf: map[uint32][]Process{42: {process(3)}, 43: {process(4)}},
	}
	r := decide(s, nil)
	if len(r.Findings) != 3 {
		t.Fatalf("there are %d findings, want 3: %+v", len(r.Findings), r.Findings)
	}
	for i, how := range [][]How{{ByNetlink}, {Loaded, ByProcess}, {Loaded, ByMap}} {
		if !slices.Equal(r.Findings[i].How, how) {
			t.Errorf("it is %+v, want %q", r.Findings[i], how)
		}
	}
	if f := r.Findings[0]; !f.Open.has(3) || f.By.has(3) {
		t.Errorf("process 3 has the program, and not the attachment: %+v", f)
	}
}

func TestNothingIsForetoldOfWhatCantBeTold(t *testing.T) {
	s := &sight{namespaces: []namespace{space("", "c1", at("eth0", 2, native(42, xdp.HeldUnknown, 0)))}}
	f := only(t, decide(s, nil))
	for _, a := range []Answer{f.Would.Own, f.Would.Share, f.Would.Replace, f.Would.Detach} {
		if a.OK || a.Why != cantTell || a.Command != "" {
			t.Errorf("the answer is %+v", a)
		}
	}
}

func TestAnEmptyInterfaceIsToldWhereItIsNamed(t *testing.T) {
	s := &sight{namespaces: []namespace{space("", "c1", xdp.State{Interface: xdp.Interface{Name: "eth0", Index: 2}})}}
	if r := decide(s, nil); len(r.Findings) != 0 {
		t.Errorf("there are %+v", r.Findings)
	}
	r := decide(s, []string{"eth0"})
	f := only(t, r)
	if !slices.Equal(f.How, []How{Empty}) || !f.Would.Own.OK || f.Would.Own.Command != "holdfast attach eth0 OBJ" || f.Would.Replace.OK || f.Would.Detach.OK {
		t.Errorf("it is %+v, would be %+v", f, f.Would)
	}
	if name, ok := r.Interface("c1", 2); name != "eth0" || !ok {
		t.Errorf("interface 2 is %q", name)
	}
	if name, ok := r.Interface("c2", 2); ok {
		t.Errorf("interface 2 of another namespace is %q", name)
	}
}

func TestNoCommandIsToldThatWouldReadTheNameAsAnOption(t *testing.T) {
	s := &sight{namespaces: []namespace{space("", "c1", at("--all", 2, native(42, xdp.HeldByNetlink, 0)))}}
	f := only(t, decide(s, nil))
	for _, a := range []Answer{f.Would.Own, f.Would.Share, f.Would.Replace, f.Would.Detach} {
		if a.Command != "" {
			t.Errorf("to run is %q", a.Command)
		}
	}
}

func TestAPortIsToldOfItsMastersProgram(t *testing.T) {
	s := &sight{namespaces: []namespace{space("", "c1",
		at("br0", 4, native(42, xdp.HeldByNetlink, 0)),
		xdp.State{Interface: xdp.Interface{Name: "eth0", Index: 2, Master: 4}},
	)}}
	r := decide(s, []string{"eth0"})
	f := r.Findings[1]
	if f.Interface != "eth0" || f.Would.Own.OK || !strings.Contains(f.Would.Own.Why, "attach to br0 instead, or detach there") {
		t.Errorf("it is %+v, would be %+v", f, f.Would)
	}
}

func TestWhatHoldfastOwnsItCanChange(t *testing.T) {
	held := func() *Finding {
		s := &sight{
			namespaces: []namespace{space("blue", "c1", at("eth0", 2, native(42, xdp.HeldByLink, 7)))},
			links:      []xdp.LinkInfo{{ID: 7, ProgramID: 42, Index: 2}},
			pins:       []pin{{Pin: Pin{Path: "/run/holdfast/bpf/c1-2/link"}, link: 7}},
		}
		f := only(t, decide(s, nil))
		return &f
	}
	for _, c := range []struct {
		name           string
		own            *Own
		add, detach    bool
		addRun, detRun string
	}{
		{"foreign", nil, false, false, "", "holdfast detach eth0 --foreign --expect 42 --netns blue"},
		{"one member", &Own{Chain: true, Members: []string{"a b"}}, true, true, "holdfast attach eth0 OBJ --netns blue", "holdfast detach eth0 'a b' --netns blue"},
		{"several", &Own{Chain: true, Members: []string{"a", "b"}}, true, true, "holdfast attach eth0 OBJ --netns blue", "holdfast detach eth0 MEMBER --netns blue"},
		{"exclusive", &Own{Chain: true, Members: []string{"a"}, Exclusive: true, Owner: "uid 0 x"}, false, true, "holdfast detach eth0 a --netns blue", "holdfast detach eth0 a --netns blue"},
		{"locked", &Own{Chain: true, Locked: true, Owner: "uid 0 x"}, false, false, "holdfast unlock eth0 --netns blue", "holdfast detach eth0 --foreign --expect 42 --netns blue"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := held()
			if c.own != nil {
				f.SetOwn(*c.own)
			}
			w := f.Would
			if w.Own.OK != c.add || w.Own.Command != c.addRun || w.Detach.OK != c.detach || w.Share.OK || w.Replace.OK != c.detach {
				t.Errorf("it would be %+v", w)
			}
			if c.own == nil && w.Detach.Command != c.detRun || c.detach && w.Detach.Command != c.detRun {
				t.Errorf("to detach is %q, want %q", w.Detach.Command, c.detRun)
			}
		})
	}
}

func TestAWordIsQuotedForTheShell(t *testing.T) {
	for in, want := range map[string]string{"eth0": "eth0", "a b": "'a b'", "": "''", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "/proc/3/ns/net": "/proc/3/ns/net"} {
		if got := quote(in); got != want {
			t.Errorf("%q is written %s, want %s", in, got, want)
		}
	}
}

func TestASlotIsReadFromWhatNamesIt(t *testing.T) {
	for path, want := range map[string]string{
		"/sys/fs/bpf/xdp/dispatch-2-50/prog1-link":    "50 1",
		"/run/holdfast/bpf/c4-17/m16/link-81-4":       "81 4",
		"/sys/fs/bpf/xdp/dispatch-2-50/prog1-prog":    "",
		"/sys/fs/bpf/link":                            "",
		"/x/dispatch-2-99999999999/prog1-link":        "",
		"/sys/fs/bpf/xdp/dispatch-2-50/prog1-link/no": "",
	} {
		got := ""
		if target, slot, ok := slotOfPin(path); ok {
			got = fmt.Sprint(target, slot)
		}
		if got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	for name, want := range map[string]int{"prog3": 3, "slot63": 63, "xdp_dispatcher": -1, "": -1, "prog99999999999": -1} {
		if got := slotOfFunction(name); got != want {
			t.Errorf("the slot of %q is %d, want %d", name, got, want)
		}
	}
}

// FuzzSlot: whatever a pin or a function is called, reading it does not crash, and
// what is written as the protocol has it is read.
func FuzzSlot(f *testing.F) {
	f.Add("/sys/fs/bpf", uint32(50), uint16(1))
	f.Add("prog", uint32(0), uint16(65535))
	f.Fuzz(func(t *testing.T, dir string, target uint32, slot uint16) {
		slotOfPin(dir)
		slotOfFunction(dir)
		path := fmt.Sprintf("%s/dispatch-2-%d/prog%d-link", dir, target, slot)
		if gotTarget, gotSlot, ok := slotOfPin(path); !ok || gotTarget != target || gotSlot != int(slot) {
			t.Errorf("%s is slot %d of %d (%v)", path, gotSlot, gotTarget, ok)
		}
		if got := slotOfFunction(fmt.Sprintf("prog%d", slot)); got != int(slot) {
			t.Errorf("slot %d is read as %d", slot, got)
		}
	})
}
