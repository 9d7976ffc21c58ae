package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/doctor"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/policy"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/NAME.golden.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("not as in %s, which `go test ./internal/cli -update` writes anew (-want +got):\n%s", path, diff)
	}
}

// printed is what the function prints in that format.
func printed(t *testing.T, format string, print func(*app) error) []byte {
	t.Helper()
	// Tables have local times.
	local := time.Local
	time.Local = time.FixedZone("", 2*60*60)
	defer func() { time.Local = local }()
	var out bytes.Buffer
	a := &app{env: Env{Stdout: &out}, log: slog.New(slog.DiscardHandler), output: format}
	if err := print(a); err != nil {
		t.Fatal(err)
	}
	if format == "json" {
		var e struct {
			Version int
			Kind    string
			Result  json.RawMessage
		}
		if err := json.Unmarshal(out.Bytes(), &e); err != nil || e.Version != 1 || e.Kind == "" || len(e.Result) == 0 {
			t.Errorf("not a result of version 1: %v: %s", err, out.Bytes())
		}
	}
	return out.Bytes()
}

var (
	loadedAt   = time.Date(2026, 3, 1, 7, 59, 58, 0, time.UTC)
	attachedAt = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)

	// One of each kind that there is.
	permanent = arbiter.Status{
		NamespaceID: "c1", Interface: "eth0", Index: 2,
		Attachment: xdp.Attachment{
			Mode:    xdp.Native,
			Program: xdp.Program{ID: 42, Name: "filter", Tag: "e9a407dacc323ba6", LoadedAt: loadedAt},
			Held:    xdp.HeldByLink, LinkID: 7, Pins: []string{"/run/holdfast/bpf/c1-2/link"},
		},
		Name: "ddos <1>", Since: attachedAt, Lifetime: arbiter.Permanent, Entry: "c1-2",
		Owner: &arbiter.Owner{
			UID: 0, GID: 0, Process: procfs.Process{PID: 815, Start: 123456},
			Exe: "/usr/bin/holdfast", Comm: "holdfast", Cgroup: "/system.slice/ddos.service",
		},
	}
	shared = arbiter.Status{
		NamespaceID: "c1", Interface: "eth1", Index: 3,
		Attachment: xdp.Attachment{
			Mode: xdp.Generic, Program: xdp.Program{ID: 43, Name: "sample", Tag: "614b434cd8324ecc", LoadedAt: loadedAt},
			Held: xdp.HeldByNetlink,
		},
		Since: loadedAt, SinceLoad: true, Lifetime: arbiter.Permanent,
	}
	heldByTwo = arbiter.Status{
		Namespace: "blue", NamespaceID: "c4097", Interface: "eth0", Index: 2,
		Attachment: xdp.Attachment{
			Mode: xdp.Native, Program: xdp.Program{ID: 44, Name: "count", Tag: "0123456789abcdef", LoadedAt: loadedAt, UID: 1000},
			Held: xdp.HeldByLink, LinkID: 8, Pins: []string{"/sys/fs/bpf/theirs"},
			Holders: []xdp.Holder{{PID: 900, Comm: "collector"}, {PID: 901, Comm: "collector"}},
		},
		Since: loadedAt, SinceLoad: true, Lifetime: arbiter.Held,
	}
	unreadable = arbiter.Status{
		Namespace: "/proc/950/ns/net", NamespaceID: "c4098", Interface: "veth1", Index: 9,
		Attachment: xdp.Attachment{Mode: xdp.Native, Program: xdp.Program{ID: 45}, Held: xdp.HeldUnknown},
		Lifetime:   arbiter.Unknown,
	}
	defunct = arbiter.Status{
		Interface: "veth7",
		Attachment: xdp.Attachment{
			Program: xdp.Program{ID: 46}, Held: xdp.HeldByLink, LinkID: 9, Pins: []string{"/run/holdfast/bpf/c1-17/link"},
		},
		Name: "gone", Since: attachedAt, Lifetime: arbiter.Defunct, Entry: "c1-17",
		Owner: &arbiter.Owner{UID: 1000, GID: 1000, Process: procfs.Process{PID: 816, Start: 123457}, Exe: "/opt/agent"},
	}
	everything = hooks(defunct, permanent, shared, heldByTwo, unreadable)

	dispatcher = xdp.Program{ID: 586, Name: "xdp_dispatcher", Tag: "63e8febd672ce2c6", LoadedAt: loadedAt}
	chained    = hookStatus{
		Status: arbiter.Status{
			NamespaceID: "c1", Interface: "eth2", Index: 4,
			Attachment: xdp.Attachment{Mode: xdp.Native, Program: dispatcher, Held: xdp.HeldByNetlink},
			Since:      loadedAt, SinceLoad: true, Lifetime: arbiter.Permanent,
		},
		Chain: newChainStatus(&libxdp.Chain{
			Kind: libxdp.Dispatcher, Version: 2, Mode: xdp.Native, Dispatcher: dispatcher, MadeBy: libxdp.MadeByOther, Frags: true,
			Members: []libxdp.Member{firstMember, secondMember},
		}),
	}
	firstMember = libxdp.Member{
		Slot: 0, Name: "a_name_that_only_btf_has_in_full", Priority: 10, ProceedOn: chain.Set(chain.Pass, chain.Tx),
		Program: xdp.Program{ID: 590, Name: "a_name_that_onl", Tag: "57cd311f2e27366b", LoadedAt: loadedAt},
	}
	secondMember = libxdp.Member{
		Slot: 1, Name: "sample", Priority: 50,
		Program: xdp.Program{ID: 1595, Name: "sample", Tag: "3b185187f1855c4c", LoadedAt: loadedAt, UID: 1000},
	}
	chainOfOne = &libxdp.Chain{
		Kind: libxdp.Dispatcher, Version: 3, Mode: xdp.Native, Dispatcher: dispatcher, MadeBy: libxdp.MadeByHoldfast, DeviceBound: true,
		Members: []libxdp.Member{secondMember},
	}
	damaged = hookStatus{
		Status: arbiter.Status{
			NamespaceID: "c1", Interface: "eth3", Index: 5,
			Attachment: xdp.Attachment{Mode: xdp.Generic, Program: xdp.Program{ID: 700, Name: "xdp_dispatcher", LoadedAt: loadedAt}, Held: xdp.HeldByNetlink},
			Since:      loadedAt, SinceLoad: true, Lifetime: arbiter.Permanent,
		},
		Chain: newChainStatus(&libxdp.Chain{Problem: "its pins are missing: somebody removed them"}),
	}
)

func owner(pid int) arbiter.Owner {
	return arbiter.Owner{Process: procfs.Process{PID: pid, Start: 123456}, Exe: "/usr/bin/holdfast", Comm: "holdfast", Cgroup: "/user.slice"}
}

// ownedBy is a permanent attachment with that chain.
func ownedBy(name string, index int, p xdp.Program, c arbiter.ChainStatus) hookStatus {
	s := permanent
	s.Interface, s.Index, s.Program, s.LinkID, s.Entry, s.Pins = name, index, p, uint32(index), "c1-"+name[3:], nil
	s.Chain, s.Name = &c, ""
	if len(c.Members) == 1 {
		s.Name = c.Members[0].Name
	}
	return newHook(s)
}

var (
	member1 = arbiter.MemberStatus{
		Name: "ddos <1>", ID: 16, Variables: []string{"drop_port=53"}, Priority: 10, ProceedOn: chain.Set(chain.Pass, chain.Tx), Generation: 3, Lifetime: arbiter.Permanent,
		Program: xdp.Program{ID: 42, Name: "filter", Tag: "e9a407dacc323ba6", LoadedAt: loadedAt}, Slot: new(int), LinkID: 70,
		Object: "filter.o", Function: "filter", Digest: "5d1f", Owner: owner(815), Since: attachedAt,
	}
	member2 = arbiter.MemberStatus{
		Name: "collector", ID: 18, Priority: 50, Generation: 4, Lifetime: arbiter.Held,
		Program: xdp.Program{ID: 1043, Name: "sample", Tag: "614b434cd8324ecc", LoadedAt: loadedAt, UID: 1000}, Slot: new(5), LinkID: 71,
		Object: "sample.o", Function: "sample", Digest: "6e2a", Owner: owner(4711), Since: attachedAt,
	}
	liveChain = ownedBy("eth4", 6, xdp.Program{ID: 81, Name: "holdfast_live", Tag: "57cd311f2e27366b", LoadedAt: loadedAt},
		arbiter.ChainStatus{Engine: arbiter.Live, Generation: 4, Members: []arbiter.MemberStatus{member1, member2}})
	fusedChain = ownedBy("eth5", 7, xdp.Program{ID: 82, Name: "holdfast_fused", Tag: "3b185187f1855c4c", LoadedAt: loadedAt},
		arbiter.ChainStatus{Engine: arbiter.Fused, Generation: 9, Members: []arbiter.MemberStatus{fusedMember(member1), ended(fusedMember(member2))}})
	exclusive = ownedBy("eth6", 8, member1.Program, arbiter.ChainStatus{
		Engine: arbiter.Single, Generation: 1, Exclusive: true, Members: []arbiter.MemberStatus{singleMember(member1)},
	})
	single = ownedBy("eth7", 9, member1.Program, arbiter.ChainStatus{
		Engine: arbiter.Single, Generation: 1, Members: []arbiter.MemberStatus{singleMember(member1)},
	})
	locked = ownedBy("eth8", 10, xdp.Program{ID: 83, Name: "holdfast_lock", Tag: "a04f5eef06a7f555", LoadedAt: loadedAt},
		arbiter.ChainStatus{Engine: arbiter.Single, Generation: 2, Locked: true})
)

func singleMember(m arbiter.MemberStatus) arbiter.MemberStatus {
	m.Slot, m.LinkID = nil, 0
	return m
}

func fusedMember(m arbiter.MemberStatus) arbiter.MemberStatus {
	m = singleMember(m)
	m.Program = xdp.Program{}
	return m
}

func ended(m arbiter.MemberStatus) arbiter.MemberStatus {
	m.Ended = true
	return m
}

func hooks(statuses ...arbiter.Status) []hookStatus {
	var all []hookStatus
	for _, s := range statuses {
		all = append(all, hookStatus{Status: s})
	}
	return all
}

func TestStatusIsPrintedAsItWas(t *testing.T) {
	status := func(a *app) error { return a.printStatus(everything, true) }
	golden(t, "status.json", printed(t, "json", status))
	golden(t, "status.table", printed(t, "table", status))
	golden(t, "status-here.table", printed(t, "table", func(a *app) error {
		return a.printStatus(hooks(permanent, shared), false)
	}))
	nothing := func(a *app) error { return a.printStatus([]hookStatus{}, false) }
	golden(t, "status-empty.json", printed(t, "json", nothing))
	if out := printed(t, "table", nothing); len(out) > 0 {
		t.Errorf("a table of nothing is %q", out)
	}
}

func TestAnAttachmentIsPrintedAsItWas(t *testing.T) {
	for name, s := range map[string]arbiter.Status{"attachment": permanent, "attachment-held": heldByTwo, "attachment-shared": shared} {
		attachment := func(a *app) error { return a.printAttachment(&s, "attached") }
		golden(t, name+".json", printed(t, "json", attachment))
		golden(t, name+".table", printed(t, "table", attachment))
	}
}

func TestChainsArePrintedAsTheyWere(t *testing.T) {
	status := func(a *app) error {
		return a.printStatus(append(hooks(permanent), chained, damaged, hooks(shared)[0]), false)
	}
	golden(t, "status-chains.json", printed(t, "json", status))
	golden(t, "status-chains.table", printed(t, "table", status))
	attached := func(a *app) error { return a.printHook(chained, "attached") }
	golden(t, "attachment-chain.json", printed(t, "json", attached))
	golden(t, "attachment-chain.table", printed(t, "table", attached))
	gone := newMembers([]libxdp.Member{firstMember})
	detached := func(a *app) error { return printWithout(a, "blue", "eth2", 4, gone, newChainStatus(chainOfOne)) }
	golden(t, "detached-member.json", printed(t, "json", detached))
	golden(t, "detached-member.table", printed(t, "table", detached))
	last := func(a *app) error { return printWithout(a, "", "eth2", 4, gone, nil) }
	golden(t, "detached-last-member.json", printed(t, "json", last))
	golden(t, "detached-last-member.table", printed(t, "table", last))
}

func TestOwnedChainsArePrintedAsTheyWere(t *testing.T) {
	all := map[string]hookStatus{"live": liveChain, "fused": fusedChain, "exclusive": exclusive, "single": single, "locked": locked}
	status := func(a *app) error {
		return a.printStatus([]hookStatus{liveChain, fusedChain, exclusive, single, locked}, false)
	}
	golden(t, "status-owned.json", printed(t, "json", status))
	golden(t, "status-owned.table", printed(t, "table", status))
	for name, h := range all {
		golden(t, "attachment-"+name+".table", printed(t, "table", func(a *app) error { return a.printHook(h, "attached") }))
	}
	gone := []ownedMember{newOwnedMember(member1), newOwnedMember(fusedMember(member2))}
	for name, h := range all {
		detached := func(a *app) error { return printWithout(a, "blue", h.Interface, h.Index, gone, h.Chain) }
		golden(t, "detached-"+name+".table", printed(t, "table", detached))
	}
	golden(t, "detached-live.json", printed(t, "json", func(a *app) error {
		return printWithout(a, "blue", "eth4", 6, gone[:1], liveChain.Chain)
	}))
	unlocked := func(a *app) error { return a.printEmptied("unlocked", "blue", "eth8", 10) }
	golden(t, "unlocked.json", printed(t, "json", unlocked))
	golden(t, "unlocked.table", printed(t, "table", unlocked))
	adopted := func(a *app) error { return a.printAdopted(adoptedHook{single, 41, 35 * time.Microsecond}) }
	golden(t, "adopted.json", printed(t, "json", adopted))
	golden(t, "adopted.table", printed(t, "table", adopted))
}

func TestADetachmentIsPrintedAsItWas(t *testing.T) {
	detached := func(a *app) error { return a.printEmptied("detached", "blue", "eth0", 2) }
	golden(t, "detached.json", printed(t, "json", detached))
	golden(t, "detached.table", printed(t, "table", detached))
}

func TestGCIsPrintedAsItWas(t *testing.T) {
	stale := []arbiter.Stale{
		{Entry: "c1-17", Name: "gone", Interface: "veth7", Why: "its interface is gone, or somebody detached the link by force"},
		{Entry: "c1-18", Why: "it was never completed"},
	}
	pins := []libxdp.Cleaned{
		{Path: "/sys/fs/bpf/xdp/dispatch-9-412", Index: 9, DispatcherID: 412, Removed: true, Reason: "its dispatcher is attached nowhere"},
		{Path: "/sys/fs/bpf/xdp/dispatch-2-586", Index: 2, DispatcherID: 586, Reason: "it is attached to eth0 in another network namespace (blue)"},
	}
	gc := func(a *app) error { return a.printGC(stale, pins, true) }
	golden(t, "gc.json", printed(t, "json", gc))
	golden(t, "gc.table", printed(t, "table", gc))
	golden(t, "gc-pins.table", printed(t, "table", func(a *app) error { return a.printGC(nil, pins, false) }))
	nothing := func(a *app) error { return a.printGC([]arbiter.Stale{}, nil, false) }
	golden(t, "gc-empty.json", printed(t, "json", nothing))
	if out := printed(t, "table", nothing); len(out) > 0 {
		t.Errorf("a table of nothing is %q", out)
	}
}

func TestFeaturesArePrintedAsTheyWere(t *testing.T) {
	found := []features.Feature{
		{Name: "link", About: "a link holds the hook", Supported: features.Yes, How: features.Tried, Since: "5.9"},
		{Name: "freplace", About: "members in a running dispatcher", Supported: features.No, How: features.Tried, Since: "5.10", Reason: "the kernel refused: operation not permitted"},
		{Name: "redirect", About: "programs can redirect packets to elsewhere", Supported: features.Unknown, How: features.NotTried, Since: "6.3"},
	}
	kernel := func(a *app) error { return a.printKernel(found) }
	golden(t, "features.json", printed(t, "json", kernel))
	golden(t, "features.table", printed(t, "table", kernel))
	device := features.Device{
		State: xdp.State{
			Interface:   xdp.Interface{Name: "veth1", Index: 9, MTU: 1500, Kind: "veth"},
			Attachments: []xdp.Attachment{heldByTwo.Attachment},
		},
		MaxMTU: 3506, Features: found,
	}
	golden(t, "features-interface.json", printed(t, "json", func(a *app) error { return a.printDevice(device) }))
	golden(t, "features-interface.table", printed(t, "table", func(a *app) error { return a.printDevice(device) }))
}

func TestChecksArePrintedAsTheyWere(t *testing.T) {
	well := []doctor.Check{
		{Name: "kernel", Result: doctor.OK, What: "the kernel has what owned hooks need"},
		{Name: "socket", Result: doctor.Note, What: "there is no socket", Mend: "start `holdfast daemon`"},
	}
	golden(t, "doctor.json", printed(t, "json", func(a *app) error { return a.printChecks(well) }))
	wrong := append(well, doctor.Check{Name: "stale", Result: doctor.Problem, What: "c1-2: its interface is gone", Mend: "holdfast gc"})
	golden(t, "doctor.table", printed(t, "table", func(a *app) error {
		if err := a.printChecks(wrong); ExitCode(err) != exitDrift {
			t.Errorf("the error is %v, and the exit code %d", err, ExitCode(err))
		}
		return nil
	}))
}

func TestThePolicyIsPrintedAsItWas(t *testing.T) {
	p := &policy.Policy{Rules: append([]policy.Rule{
		{Name: "guests", Where: "/etc/holdfast/policy.yaml:3"},
		{Name: "filters <1>", Where: "/etc/holdfast/policy.d/10.yaml:3", Allow: &policy.Allow{Verbs: []policy.Verb{policy.Attach, policy.Detach}}},
	}, policy.Default().Rules...)}
	rules := func(a *app) error { return a.printRules(p) }
	golden(t, "policy.json", printed(t, "json", rules))
	golden(t, "policy.table", printed(t, "table", rules))
	golden(t, "policy-empty.json", printed(t, "json", func(a *app) error { return a.printRules(&policy.Policy{}) }))
	golden(t, "policy-empty.table", printed(t, "table", func(a *app) error { return a.printRules(&policy.Policy{}) }))
	for name, uid := range map[string]int{"allowed": 0, "denied": 1000} {
		d := policy.Default().Decide(policy.Subject{UID: uid, GID: uid}, policy.Request{Verb: policy.Attach, Interface: "eth0"})
		decision := func(a *app) error {
			if err := a.printDecision(d); (ExitCode(err) == exitDone) != d.Allowed {
				t.Errorf("%s: the exit code is %d", name, ExitCode(err))
			}
			return nil
		}
		golden(t, "decision-"+name+".json", printed(t, "json", decision))
		golden(t, "decision-"+name+".table", printed(t, "table", decision))
	}
}

func TestVersionsArePrintedAsTheyWere(t *testing.T) {
	v := func(a *app) error { return a.printVersions(versions{"v0.1.0", "go1.26.0", "6.12.0"}) }
	golden(t, "version.json", printed(t, "json", v))
	golden(t, "version.table", printed(t, "table", v))
}

func TestVersionTellsWhatRuns(t *testing.T) {
	code, out, errOut := holdfast("version", "-o", "json")
	var e struct{ Result versions }
	if err := json.Unmarshal([]byte(out), &e); code != exitDone || err != nil || errOut != "" {
		t.Fatalf("exit code %d, %v, stdout %q, stderr %q", code, err, out, errOut)
	}
	if e.Result.Holdfast == "" || e.Result.Go == "" || e.Result.Kernel == "" || e.Result.Kernel == "unknown" {
		t.Errorf("%+v is not all", e.Result)
	}
}
