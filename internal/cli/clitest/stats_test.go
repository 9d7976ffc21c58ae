package clitest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

type hookStats struct {
	Interface string
	Engine    string
	Packets   uint64
	Members   []struct {
		Name string
		stats.Counters
	}
}

// stats is what the only hook has counted.
func (m *machine) stats(flags ...string) hookStats {
	m.t.Helper()
	all := decode[[]hookStats](m.holdfast(append([]string{"stats", m.NearName, "-o", "json"}, flags...)...), "stats")
	if len(all) != 1 {
		m.t.Fatalf("%+v counts", all)
	}
	return all[0]
}

func (h hookStats) verdicts() map[string]stats.Verdicts {
	all := map[string]stats.Verdicts{}
	for _, m := range h.Members {
		all[m.Name] = m.Verdicts
	}
	return all
}

func TestAChainCountsWhereItIsAskedTo(t *testing.T) {
	for _, engine := range engines(t) {
		t.Run(engine, func(t *testing.T) {
			m := newMachine(t)
			m.attach("filter", "--name", "guard", "--set", "drop_port=53", "--engine", engine, "--stats")
			m.attach("pass", "--name", "sample")
			for range 3 {
				m.action(53)
			}
			m.action(54)
			got := m.stats()
			want := map[string]stats.Verdicts{"guard": {Drop: 3, Pass: 1}, "sample": {Pass: 1}}
			if v := got.verdicts(); got.Engine != engine || got.Packets != 4 || len(v) != 2 || v["guard"] != want["guard"] || v["sample"] != want["sample"] {
				t.Errorf("counted %+v", got)
			}
			m.holdfast("stats").succeeds()
			m.holdfast("set", m.NearName, "--stats", "off").succeeds()
			m.holdfast("stats", m.NearName).says("nothing is counted there")
			if r := m.holdfast("stats").succeeds(); r.out != "" {
				t.Errorf("nothing is counted, and it prints %q", r.out)
			}
			// In one step with a member's place.
			m.holdfast("set", m.NearName, "sample", "--before", "guard", "--stats", "on").succeeds()
			m.action(53)
			v := m.stats().verdicts()
			if v["guard"] != (stats.Verdicts{Drop: 1}) || v["sample"] != (stats.Verdicts{Pass: 1}) {
				t.Errorf("counted %+v", v)
			}
		})
	}
}

func TestStatsAreSetOfOwnedChainsOnly(t *testing.T) {
	m := newMachine(t)
	m.holdfast("set", m.NearName, "--stats", "on").fails(7, "no program")
	m.holdfast("set", m.NearName, "--stats", "maybe").fails(2, `--stats "maybe"`, "on or off")
	m.holdfast("set", m.NearName).fails(2, "MEMBER is missing")
	m.holdfast("set", m.NearName, "--priority", "3", "--stats", "on").fails(2, "MEMBER is missing")
	m.holdfast("set", m.NearName, "a", "--stats", "on").fails(2, "about all members", "leave out a")
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared", "--stats").fails(2, "no counters", "own the hook")
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--shared", "--single").succeeds()
	m.holdfast("set", m.NearName, "--stats", "on").fails(7, "no chain", "by netlink")
	m.holdfast("stats", m.NearName).says("only chains of owned hooks count")
	m.holdfast("stats", "nowhere").fails(7, "nowhere")
	m.holdfast("stats", "--netns", "a", "--all-netns").fails(2, "exclude each other")
}

// What one may do to the chain with --stats is what one may do to each of its members.
func TestOthersMembersAreCountedByWhoMaySetThem(t *testing.T) {
	m := newMachine(t)
	etc := m.etc("version: 1\nrules:\n- name: samplers\n  match: {uid: [65534]}\n  allow: {verbs: [attach, detach, set]}\n")
	socket, _ := m.daemonOf(etc)
	object := filepath.Join(etc, "pass.o")
	stranger := func(args ...string) result {
		return m.finish(m.Near, m.asStranger(append(args, "--socket", socket)...))
	}
	stranger("attach", m.NearName, object, "--name", "theirs", "--stats").succeeds()
	m.action(1)
	if v := m.stats("--socket", socket).verdicts()["theirs"]; v != (stats.Verdicts{Pass: 1}) {
		t.Errorf("counted %+v", v)
	}
	stranger("set", m.NearName, "--stats", "off").succeeds()
	m.holdfast("attach", m.NearName, object, "--name", "mine").succeeds()
	stranger("set", m.NearName, "--stats", "on").fails(5, "set", m.NearName)
	m.holdfast("set", m.NearName, "--stats", "on").succeeds()
	m.action(1)
	watch := m.Near.Start(t, m.command("--socket", socket, "watch", m.NearName, "--since", "1h"))
	told := ""
	for !strings.Contains(told, "counts no more") && watch.Lines.Scan() {
		told += watch.Lines.Text() + "\n"
	}
	if !strings.Contains(told, "by uid 65534") || !strings.Contains(told, "the chain counts what its members return") {
		t.Errorf("watch says\n%s", told)
	}
	// To look is free.
	r := stranger("stats", m.NearName, "-o", "json").succeeds()
	if got := decode[[]hookStats](r, "stats"); len(got) != 1 || len(got[0].Members) != 2 || got[0].Members[1].Verdicts != (stats.Verdicts{Pass: 1}) {
		t.Errorf("a stranger sees %+v", got)
	}
}

type topRow struct {
	Interface, Member string
	Rates             *struct {
		Packets float64 `json:"packets_per_second"`
	}
	Verdicts *stats.Verdicts
}

func topRows(t testing.TB, line string) []topRow {
	t.Helper()
	var e struct {
		Version int
		Kind    string
		Result  struct{ Rows []topRow }
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Version != 1 || e.Kind != "top" {
		t.Fatalf("%s is no top: %v", line, err)
	}
	return e.Result.Rows
}

func TestTopTellsWhatHappens(t *testing.T) {
	m := newMachine(t)
	m.attach("filter", "--name", "guard", "--set", "drop_port=53", "--stats")
	m.attach("pass", "--name", "sample")
	top := m.start(m.command("top", "-o", "json", "--interval", "100ms"))
	top.line() // from here on it looks
	for range 10 {
		m.action(53)
	}
	var hook, guard, sample bool
	for !hook || !guard {
		rows := topRows(t, top.line())
		if len(rows) != 3 || rows[0].Member != "" || rows[1].Member != "guard" || rows[2].Member != "sample" {
			t.Fatalf("%+v", rows)
		}
		// The kernel counts test runs as it does others.
		hook = hook || rows[0].Rates != nil && rows[0].Rates.Packets > 0
		guard = guard || rows[1].Verdicts != nil && rows[1].Verdicts.Drop > 0
		sample = sample || rows[2].Verdicts != nil && rows[2].Verdicts.Sum() > 0
	}
	if sample {
		t.Error("what guard drops comes to sample")
	}
	// A hook that comes is seen, and one that goes is not.
	m.holdfast("detach", m.NearName, "--all").succeeds()
	for len(topRows(t, top.line())) > 0 {
	}
	m.attach("pass")
	for len(topRows(t, top.line())) != 1 {
	}

	// Killed, it leaves a kernel that does not count.
	if err := top.Cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	top.code()
	before, err := xdp.ReadRun(m.native())
	if err != nil {
		t.Fatal(err)
	}
	m.action(1)
	if after, err := xdp.ReadRun(m.native()); err != nil || after != before {
		if always, _ := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled"); string(always) == "0\n" {
			t.Errorf("the kernel counted %+v, and then %+v: %v", before, after, err)
		}
	}
	// The time, the head, the hook, and nothing.
	if r := m.holdfast("top", "--count", "1", "--interval", "100ms").succeeds(); strings.Count(r.out, "\n") != 4 || !strings.Contains(r.out, m.NearName) {
		t.Errorf("it prints %q", r.out)
	}
	m.holdfast("top", "--interval", "1ms").fails(2, "--interval 1ms")
	m.holdfast("top", "--sort", "size").fails(2, `--sort "size"`)
	m.holdfast("top", "--count", "-1").fails(2, "--count -1")
}
