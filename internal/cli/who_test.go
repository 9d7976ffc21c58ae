package cli

import (
	"errors"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// One of each kind that there is.
var (
	collector = inspect.Process{PID: 900, Comm: "collector", Unit: "collector.service", Cgroup: "/system.slice/collector.service", Parent: 1, Started: loadedAt}
	contained = inspect.Process{PID: 901, Comm: "agent\x1b", Container: "4f1b3c9d2e8a7065f4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1", Parent: 77, Orphan: true}
	letGo     = inspect.Answer{
		Why: `conflict: program 42 "filter" is attached in native mode and held by link 7; whoever holds the link must let go first`,
		Ask: []string{collector.String(), contained.String()},
	}
	takeAway  = inspect.Answer{Why: letGo.Why, Ask: letGo.Ask, Command: "holdfast detach eth0 --foreign --expect 42", Note: "by force, as root"}
	whoLinked = whoFinding{Finding: inspect.Finding{
		NamespaceID: "c1", Interface: "eth0", Index: 2, Mode: xdp.Native,
		Program: xdp.Program{ID: 42, Name: "filter", Tag: "e9a407dacc323ba6", LoadedAt: loadedAt},
		Held:    xdp.HeldByLink, LinkID: 7, How: []inspect.How{inspect.ByProcess, inspect.ByPin},
		By: inspect.Keepers{
			Processes: []inspect.Process{collector, contained},
			Pins: []inspect.Pin{
				{Path: "/sys/fs/bpf/theirs", Since: attachedAt},
				{Path: "/run/private", PID: 902, Comm: "hidden", Reach: "/proc/902/root/run/private", Since: attachedAt},
			},
		},
		Open:  inspect.Keepers{Processes: []inspect.Process{collector}},
		Since: loadedAt, SinceLoad: true,
		Notes: []string{contained.String() + " may have been started by one that has ended, and have what it holds from that"},
		Would: &inspect.Would{Own: letGo, Share: letGo, Replace: letGo, Detach: takeAway},
	}}
	whoShared = whoFinding{Finding: inspect.Finding{
		Namespace: "blue", Namespaces: []string{"blue"}, NamespaceID: "c4097", Interface: "eth1", Index: 3, Mode: xdp.Native,
		Program: dispatcher, Held: xdp.HeldByNetlink, How: []inspect.How{inspect.ByLibxdp}, Since: loadedAt, SinceLoad: true,
		Members: []inspect.Member{
			{Slot: 0, Program: firstMember.Program, LinkID: 20, How: []inspect.How{inspect.ByPin}, By: inspect.Keepers{Pins: []inspect.Pin{{Path: "/sys/fs/bpf/xdp/dispatch-3-586/prog0-link", Since: attachedAt}}}},
			{Slot: 1, Program: secondMember.Program, LinkID: 21, How: []inspect.How{inspect.InFlight}},
		},
		Would: &inspect.Would{
			Own:     inspect.Answer{Why: "conflict", Command: "holdfast detach eth1 --all --netns blue"},
			Share:   inspect.Answer{OK: true, Command: "holdfast attach eth1 OBJ --shared --netns blue", Note: "the program joins the chain"},
			Replace: inspect.Answer{OK: true, Command: "holdfast replace eth1 MEMBER OBJ --netns blue"},
			Detach:  inspect.Answer{OK: true, Command: "holdfast detach eth1 MEMBER --netns blue"},
		},
	}}
	whoAmbiguous = whoFinding{Finding: inspect.Finding{
		Namespace: "/proc/950/ns/net", Namespaces: []string{"950"}, NamespaceID: "c4098", Interface: "veth1", Index: 9, Mode: xdp.Generic,
		Program: xdp.Program{ID: 45}, Held: xdp.HeldByLink, How: []inspect.How{inspect.ByProcess, inspect.InFlight},
		Candidates: []inspect.Candidate{
			{LinkID: 11, By: inspect.Keepers{Processes: []inspect.Process{collector}}},
			{LinkID: 12, By: inspect.Keepers{}},
		},
		By:    inspect.Keepers{Sockets: []inspect.Socket{{Process: collector, Inode: 4711, Descriptors: 1}}},
		Notes: []string{"one of 2 links holds it"},
		Would: &inspect.Would{Own: letGo, Share: letGo, Replace: letGo, Detach: takeAway},
	}}
	whoIdle = whoFinding{Finding: inspect.Finding{
		Program: xdp.Program{ID: 46, Name: "idle", LoadedAt: loadedAt}, How: []inspect.How{inspect.Loaded, inspect.ByProcess},
		By: inspect.Keepers{Processes: []inspect.Process{collector}}, Since: loadedAt, SinceLoad: true,
	}}
	whoEmpty = whoFinding{Finding: inspect.Finding{
		NamespaceID: "c1", Interface: "eth9", Index: 10, How: []inspect.How{inspect.Empty},
		Would: &inspect.Would{
			Own:     inspect.Answer{OK: true, Command: "holdfast attach eth9 OBJ"},
			Share:   inspect.Answer{OK: true, Command: "holdfast attach eth9 OBJ --shared"},
			Replace: inspect.Answer{Why: "not attached: the hook is empty"},
			Detach:  inspect.Answer{Why: "not attached: the hook is empty"},
		},
	}}
)

// whoOwned is an attachment of Holdfast's.
func whoOwned(s arbiter.Status) whoFinding {
	w := whoFinding{Finding: inspect.Finding{
		NamespaceID: s.NamespaceID, Interface: s.Interface, Index: s.Index, Mode: s.Mode,
		Program: s.Program, Held: s.Held, LinkID: s.LinkID, How: []inspect.How{inspect.ByPin},
		By: inspect.Keepers{Pins: []inspect.Pin{{Path: "/run/holdfast/bpf/" + s.Entry + "/link", Since: attachedAt}}},
	}}
	if s.Lifetime == arbiter.Defunct {
		w.Interface, w.How = "", []inspect.How{inspect.Defunct, inspect.ByPin}
	}
	w.describe(s, &inspect.Report{})
	return w
}

func TestWhoIsPrintedAsItWas(t *testing.T) {
	all := []whoFinding{whoLinked, whoShared, whoAmbiguous, whoOwned(permanent), whoOwned(liveChain.Status), whoIdle, whoOwned(defunct)}
	for name, r := range map[string]struct {
		whoResult
		one bool
	}{
		"who":       {whoResult{Findings: all, Limits: []string{"only some processes are seen"}}, false},
		"who-one":   {whoResult{Findings: []whoFinding{whoLinked, whoShared, whoEmpty}}, true},
		"who-empty": {whoResult{}, false},
	} {
		who := func(a *app) error { return a.printWho(r.whoResult, r.one) }
		golden(t, name+".json", printed(t, "json", who))
		if len(r.Findings) > 0 {
			golden(t, name+".table", printed(t, "table", who))
		}
	}
}

func TestAMemberOfHoldfastsIsItsOwners(t *testing.T) {
	w := whoOwned(liveChain.Status)
	if !w.ownedBy(4711) || w.ownedBy(815) {
		t.Error("process 4711 holds a member, and 815 has made one permanent")
	}
	if !w.hasMember(1043) || w.hasMember(99) || !w.hasMemberLink(71) || w.hasMemberLink(99) {
		t.Error("members are not found by program and link, or others are")
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	for name, err := range map[string]error{
		"an interface": whoFlags{}.nothing("nope0"),
		"a program":    whoFlags{id: 1 << 31}.nothing(""),
		"a process":    whoFlags{pid: 1 << 30}.nothing(""),
	} {
		if !errors.Is(err, xdp.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (whoFlags{pid: 1}).nothing(""); err != nil {
		t.Errorf("a process that holds nothing: %v", err)
	}
	if _, err := (whoFlags{pin: "/nope"}).filter(""); !errors.Is(err, xdp.ErrNotFound) {
		t.Errorf("a pin: %v", err)
	}
}
