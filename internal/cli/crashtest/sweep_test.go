package crashtest

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// operation is a change that is killed at each of its points. Paths in its
// requests are completed by the site.
type operation struct {
	name    string
	request request
	// before is the change that it starts from, if any.
	before *request
	// programs is how many stay loaded for one attachment.
	programs int
	// defaultState has the operation mount the state, too.
	defaultState bool
	// netns has it name the interface's namespace.
	netns bool
	// everywhere has it swept on every kernel, and not only on the machine's own
	// and one in a virtual machine.
	everywhere bool
}

var (
	alone    = request{Floor: byArbiter, Verb: "attach", Object: "pass", Name: "filter"}
	shared   = request{Floor: byArbiter, Verb: "attach", Object: "pass", Name: "filter", Shared: true}
	second   = request{Floor: byArbiter, Verb: "attach", Object: "pass", Name: "filter", PersistAs: "second"}
	tailcall = request{Floor: byArbiter, Verb: "attach", Object: "tailcall", Program: "enter", Name: "filter"}
	replace  = request{Verb: "replace", Object: "drop", Name: "filter"}
	detach   = request{Verb: "detach"}
)

var operations = []operation{
	{name: "attach owned", everywhere: true, request: alone, programs: 1},
	{name: "attach owned, with a second pin", request: second, programs: 1},
	{name: "attach owned, with tail calls", request: tailcall, programs: 2},
	{name: "attach owned, in another namespace", request: alone, programs: 1, netns: true},
	{name: "attach owned, where there is no state yet", request: alone, programs: 1, defaultState: true},
	{name: "attach shared", everywhere: true, request: shared, programs: 1},
	{name: "attach shared, over somebody else's", before: &netlink, programs: 1,
		request: request{Verb: "attach", Object: "drop", Name: "filter", Shared: true, Expect: before}},
	{name: "replace owned", everywhere: true, before: &alone, request: replace, programs: 1},
	{name: "replace owned by the same", before: &alone, programs: 1,
		request: request{Verb: "replace", Object: "pass", Name: "filter"}},
	{name: "replace owned, with tail calls", before: &tailcall, programs: 2,
		request: request{Verb: "replace", Object: "tailcall", Program: "enter", Name: "filter"}},
	{name: "replace shared", everywhere: true, before: &shared, request: replace, programs: 1},
	{name: "detach owned", everywhere: true, before: &alone, request: detach, programs: 1},
	{name: "detach owned, with a second pin", before: &second, request: detach, programs: 1},
	{name: "detach owned, with tail calls", before: &tailcall, request: detach, programs: 2},
	{name: "detach shared", everywhere: true, before: &shared, request: detach, programs: 1},
}

// before, as an expectation, is the program that the operation starts from.
const before = "before"

// link and netlink are what package xdp does without the arbiter. Its own tests
// kill its changes one by one; here a link is made, persisted and taken off
// again by a program that loads what it attaches.
var (
	link    = request{Floor: byXDP, Verb: "attach", Object: "pass", PersistAs: "link"}
	netlink = request{Floor: byXDP, Verb: "attach", Object: "pass", Shared: true}
)

var linkOperations = []operation{
	{name: "attach by a link and persist", request: link},
	{name: "replace a link's program", before: &link, request: request{Verb: "replace", Object: "drop", PersistAs: "link"}},
	{name: "detach a link", before: &link, request: request{Verb: "detach", PersistAs: "link"}},
}

func TestWhoPersistsALinkCanBeKilledAnywhere(t *testing.T) { sweepAll(t, byXDP, linkOperations) }

// In a virtual machine the operations of the arbiter are swept as the command's,
// and only the first also without it.
func TestTheArbiterCanBeKilledAnywhere(t *testing.T) {
	if kerneltest.InMachine() {
		sweepAll(t, byArbiter, operations[:1])
		return
	}
	sweepAll(t, byArbiter, operations)
}

func TestTheCommandCanBeKilledAnywhere(t *testing.T) { sweepAll(t, byCommand, operations) }

func sweepAll(t *testing.T, f floor, operations []operation) {
	kerneltest.NoLeaks(t)
	// Each run attaches and detaches a few times.
	kerneltest.FillDispatcher(t)
	for _, op := range operations {
		if onAnotherKernel() && f == byCommand && !op.everywhere {
			continue
		}
		op.request.Floor = f
		t.Run(op.name, func(t *testing.T) {
			s := newSite(t)
			if op.netns {
				s.enter(t)
			}
			if op.defaultState {
				s.dir = ""
				t.Cleanup(func() { removeDefaultState(t) })
			}
			var from uint32 // the program that was attached before
			var r request
			crash.Sweep{
				BeforeOnly: f != byXDP && kerneltest.InMachine(), Sample: kerneltest.OneOf(3),
				Setup: func(t *testing.T) crash.Command {
					if op.defaultState {
						removeDefaultState(t)
					}
					from = 0
					if op.before != nil {
						from = s.prepare(t, s.complete(*op.before, 0))
					}
					r = s.complete(op.request, from)
					return s.command(t, r)
				},
				Check: func(t *testing.T, run crash.Run) { s.check(t, op, r, from, run) },
			}.Run(t)
		})
	}
}

// enter moves the site into a namespace that has to be named.
func (s *site) enter(t *testing.T) {
	t.Helper()
	ns := kerneltest.NewNetNS(t)
	const near, far = "near", "far"
	if err := ns.Conn.AddVeth(near, far, -1); err != nil {
		t.Fatal(err)
	}
	index := ns.Device(t, near).Index
	t.Cleanup(func() { ns.Conn.Delete(index) })
	s.netns, s.name = ns.Path(), near
}

// complete fills in what only the site knows.
func (s *site) complete(r request, from uint32) request {
	r.Dir, r.Netns, r.Interface = s.dir, s.netns, s.name
	if r.Object != "" {
		r.Object = s.objects[r.Object]
	}
	if r.PersistAs != "" && !filepath.IsAbs(r.PersistAs) {
		r.PersistAs = filepath.Join(s.pins, r.PersistAs)
	}
	if r.Expect == before {
		r.Expect = fmt.Sprint(from)
	}
	return r
}

// prepare makes a change that nobody disturbs, and returns the program.
func (s *site) prepare(t *testing.T, r request) uint32 {
	t.Helper()
	if code, _, stderr := s.perform(t, r); code != 0 {
		t.Fatalf("%s first: %s", r.Verb, stderr)
	}
	return s.attached(t).Program.ID
}

// check checks what the run left, has gc tidy up after half of the kills, and
// makes the same change again.
//
// What a process leaves that is killed after a call is, nearly always, what one
// leaves that is killed before the next. So one of the two has gc run, and the
// other not.
func (s *site) check(t *testing.T, op operation, r request, from uint32, run crash.Run) {
	t.Helper()
	defer s.cleanUp(t, r)
	acknowledged := r.acknowledged(run.Stdout)
	if !run.Reached && (run.Status.ExitStatus() != 0 || !acknowledged) {
		t.Errorf("undisturbed it was not acknowledged: %v", run)
	}
	s.settle(t)
	now := s.attached(t)
	if err := promised(r, from, now, acknowledged); err != nil {
		t.Error(err)
	}
	if acknowledged && now != nil && r.Floor == byCommand && !strings.Contains(run.Stdout, fmt.Sprintf("program %d ", now.Program.ID)) {
		t.Errorf("it said %q, and attached is %s", run.Stdout, describe(now))
	}
	s.persisted(t, now)
	if r.Floor == byXDP {
		s.again(t, r, from, now, acknowledged, false)
		return
	}
	ours := op.before != &netlink || now != nil && now.Program.ID != from
	s.truthful(t, now, ours)
	tidied := secondHalf(run)
	if tidied {
		s.tidy(t, op, now, ours)
	}
	s.again(t, r, from, now, acknowledged, tidied)
}

// promised tells whether what is attached is what was there before or what was
// asked for, and the latter if it was acknowledged.
func promised(r request, from uint32, now *xdp.Attachment, acknowledged bool) error {
	var id uint32
	if now != nil {
		id = now.Program.ID
	}
	var done bool
	switch r.Verb {
	case "detach":
		done = id == 0
	default:
		done = id != from && id != 0
	}
	switch {
	case !done && id != from:
		return fmt.Errorf("%s is attached, want program %d", describe(now), from)
	case acknowledged && !done:
		return fmt.Errorf("the %s was acknowledged, and %s is attached", r.Verb, describe(now))
	}
	return nil
}

// persisted checks that an owned hook's link is pinned and that nothing else is.
func (s *site) persisted(t *testing.T, now *xdp.Attachment) {
	t.Helper()
	pinned := s.pinned(t)
	expected := 0
	if now != nil && now.Held == xdp.HeldByLink {
		expected = 1
		if pinned[now.LinkID] == nil {
			t.Errorf("%s is attached, and its link is not pinned: %v", describe(now), pinned)
		}
	}
	if len(pinned) != expected {
		t.Errorf("pinned links are %v, want %d", pinned, expected)
	}
}

// truthful checks that status shows what is attached and nothing else, and
// whether Holdfast attached it.
func (s *site) truthful(t *testing.T, now *xdp.Attachment, ours bool) {
	t.Helper()
	all := s.status(t)
	if now == nil {
		if len(all) > 0 {
			t.Errorf("nothing is attached, and status shows %+v", all)
		}
		return
	}
	if len(all) != 1 {
		t.Fatalf("%s is attached, and status shows %+v", describe(now), all)
	}
	st := all[0]
	if st.Program.ID != now.Program.ID || st.LinkID != now.LinkID || st.Held != now.Held || st.Interface != s.name {
		t.Errorf("%s is attached, and status shows %+v", describe(now), st)
	}
	if (st.Entry != "") != ours || (st.Owner != nil) != ours || (st.Name == "filter") != ours || st.Lifetime != arbiter.Permanent {
		t.Errorf("status takes what Holdfast attached for somebody else's, or the other way round: %+v", st)
	}
}

// tidy runs gc, which must leave what is attached and nothing else.
func (s *site) tidy(t *testing.T, op operation, now *xdp.Attachment, ours bool) {
	t.Helper()
	entries := s.entries(t)
	would := s.gc(t, true)
	if after := s.entries(t); !slices.Equal(entries, after) {
		t.Errorf("gc that only tells left %v of the entries %v", after, entries)
	}
	if did := s.gc(t, false); !reflect.DeepEqual(would, did) {
		t.Errorf("gc said that it would remove %v, and removed %v", would, did)
	}
	attached, expected := 0, 0
	if now != nil {
		attached = 1
		if ours {
			expected = 1
		}
	}
	if entries := s.entries(t); len(entries) != expected {
		t.Errorf("after gc the entries are %v, want %d", entries, expected)
	}
	if after := s.attached(t); !same(now, after) {
		t.Errorf("gc changed what is attached: from %s to %s", describe(now), describe(after))
	}
	s.persisted(t, now)
	s.truthful(t, now, ours)
	s.loaded(t, attached*op.programs)
}

func same(a, b *xdp.Attachment) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Program.ID == b.Program.ID && a.LinkID == b.LinkID && a.Held == b.Held && a.Mode == b.Mode
}

// again makes the same change once more, which must succeed, unless whoever
// asked knew that it was done.
func (s *site) again(t *testing.T, r request, from uint32, now *xdp.Attachment, acknowledged, tidied bool) {
	t.Helper()
	code, stdout, stderr := s.perform(t, r)
	refused := "" // the refusal that is as good
	switch {
	case r.Verb == "attach" && acknowledged && !r.Shared:
		refused = "the name is taken"
	case r.Verb == "attach" && acknowledged:
		refused = "conflict"
	case r.Verb == "detach" && (acknowledged || tidied && now == nil):
		refused = "not attached"
	}
	switch {
	case code == 0 && !r.acknowledged(stdout):
		t.Errorf("again it said nothing: %q", stdout)
	case code != 0 && (refused == "" || !strings.Contains(stderr, refused)):
		t.Errorf("again it ended with exit code %d: %s", code, stderr)
	}
	after := s.attached(t)
	if err := promised(r, from, after, true); err != nil {
		t.Errorf("again: %v", err)
	}
	if r.Floor == byXDP {
		s.persisted(t, after)
		return
	}
	s.truthful(t, after, true)
	if pins := s.pinned(t); r.PersistAs != "" && len(pins[after.LinkID]) != 2 {
		t.Errorf("the link has not both pins: %v", pins)
	}
}

// cleanUp detaches, after which nothing is left.
func (s *site) cleanUp(t *testing.T, r request) {
	t.Helper()
	if s.attached(t) != nil {
		d := s.complete(request{Floor: r.Floor, Verb: "detach", PersistAs: r.PersistAs, Shared: r.Shared, Foreign: true, Expect: "any"}, 0)
		if code, _, stderr := s.perform(t, d); code != 0 {
			t.Errorf("detach at last: exit code %d: %s", code, stderr)
		}
	}
	s.empty(t)
}

// points are the calls that a process is killed at: all that may change
// something. In a virtual machine the arbiter and the command are killed only
// where they leave something that others can see. What they load before leaves
// with them wherever they are killed, as who persists a link shows, who loads in
// the same way and is killed everywhere.
func points(f floor) func(crash.Point) bool {
	if f == byXDP || !kerneltest.InMachine() {
		return crash.Changes
	}
	return func(p crash.Point) bool { return crash.Changes(p) && visible(p) }
}

// onAnotherKernel tells whether this is a virtual machine beside the one that
// sweeps all operations.
func onAnotherKernel() bool { return kerneltest.InMachine() && kerneltest.Rounds(4) < 4 }

// secondHalf picks half of the kills: those after a call, and where there are none
// every second one.
func secondHalf(run crash.Run) bool {
	if kerneltest.InMachine() {
		return run.Reached && len(run.Points)%2 == 0
	}
	return run.Reached && run.Side == crash.After
}

func visible(p crash.Point) bool {
	switch p.Op {
	case "BPF_TOKEN_CREATE", "BPF_MAP_CREATE", "BPF_BTF_LOAD", "BPF_PROG_LOAD", "BPF_PROG_TEST_RUN":
		return false
	}
	switch p.Call {
	case "flock", "setns", "close", "exit_group":
		return false
	}
	return true
}
