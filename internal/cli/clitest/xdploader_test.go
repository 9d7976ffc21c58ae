package clitest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// xdpLoader runs holdfast by the name xdp-loader, as through a link, with
// variables in its environment.
func (m *machine) xdpLoader(env []string, args ...string) result {
	m.t.Helper()
	cmd := m.command(args...)
	cmd.Args[0] = "/usr/sbin/xdp-loader"
	cmd.Env = append(cmd.Env, env...)
	return m.finish(m.Near, cmd)
}

// exits fails the test unless the command ended with the code and said all of
// this.
func (r result) exits(code int, says ...string) result {
	r.t.Helper()
	if r.code != code {
		r.t.Fatalf("%s\nwant exit code %d", r, code)
	}
	r.says(says...)
	return r
}

// rows are the rows of a status below its head, in words.
func (r result) rows() (rows [][]string) {
	r.t.Helper()
	const head = "CURRENT XDP PROGRAM STATUS:\n\n" +
		"Interface        Prio  Program name      Mode     ID   Tag               Chain actions\n" +
		"--------------------------------------------------------------------------------------\n"
	body, ok := strings.CutPrefix(r.exits(0).out, head)
	if !ok || !strings.HasSuffix(body, "\n\n") {
		r.t.Fatalf("%s\nwhich is not xdp-loader's status", r)
	}
	for line := range strings.Lines(strings.TrimSuffix(body, "\n")) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

// xdpLoaderMembers fails the test unless the status shows these members, and returns
// their ids. A script counts the lines with "=>" and takes the fourth word.
func (m *machine) xdpLoaderMembers(names ...string) map[string]string {
	m.t.Helper()
	ids := map[string]string{}
	var got []string
	for _, row := range m.xdpLoader(nil, "status", m.NearName).rows() {
		if row[0] == "=>" {
			got = append(got, row[2])
			ids[row[2]] = row[3]
		}
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		m.t.Errorf("xdp-loader shows the members %v, want %v", got, names)
	}
	return ids
}

// What scripts written for xdp-loader do, xdp-tools' own tests among them.
func TestScriptsForXDPLoaderLoadListAndUnload(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	drops, passes := kerneltest.ObjectFile(t, "drop"), kerneltest.ObjectFile(t, "pass")
	x := func(args ...string) result { t.Helper(); return m.xdpLoader(nil, args...) }

	for _, args := range [][]string{{"-vv"}, {"-s", "xdp", "-vv"}, {"-n", "xdp_drop", "-vv"}, {"-m", "unspecified"}} {
		x(append([]string{"load", m.NearName, drops}, args...)...).exits(0)
		m.xdpLoaderMembers("xdp_drop")
		x("unload", m.NearName, "--all", "-vv").exits(0)
		m.holds(0)
	}
	r := x("load", "-v", m.NearName, passes).exits(0, "Loading 1 files on interface '"+m.NearName+"'.", "XDP program 0: Run prio: 50. Chain call actions: XDP_PASS\n")
	if strings.Contains(r.err, "Compatibility check") || strings.Contains(r.err, "Falling back") || r.out != "" {
		t.Errorf("%s", r)
	}
	x("unload", "-a", m.NearName).exits(0)

	x("load", m.NearName, drops, passes, "-vv").exits(0)
	m.xdpLoaderMembers("xdp_drop", "xdp_pass")
	x("unload", m.NearName, "--all").exits(0)

	x("load", m.NearName, drops, "-vv").exits(0)
	x("load", m.NearName, passes, "-P", "10", "-A", "XDP_PASS,XDP_DROP").exits(0)
	ids := m.xdpLoaderMembers("xdp_pass", "xdp_drop")
	row := x("status", m.NearName).rows()[1]
	if want := []string{"=>", "10", "xdp_pass", ids["xdp_pass"]}; len(row) != 6 || strings.Join(row[:4], " ") != strings.Join(want, " ") || row[5] != "XDP_DROP,XDP_PASS" {
		t.Errorf("a member's row is %q", row)
	}
	x("unload", m.NearName, "--id", "4000000000").exits(1, "Program with ID 4000000000 not loaded on "+m.NearName+"\n")
	x("unload", m.NearName, "--id", ids["xdp_pass"]).exits(0)
	m.xdpLoaderMembers("xdp_drop")
	x("unload", m.NearName, "-i", ids["xdp_drop"]).exits(0)
	m.xdpLoaderMembers()
	m.holds(0)
	if left := entries(t, filepath.Join(m.pins, "xdp")); len(left) > 0 {
		t.Errorf("left in the bpffs: %v", left)
	}

	// Both commands change the same chain.
	m.holdfast("attach", m.NearName, drops, "--shared").succeeds()
	x("load", m.NearName, passes).exits(0)
	m.holdfast("detach", m.NearName, "xdp_drop").succeeds()
	m.xdpLoaderMembers("xdp_pass")
	x(append([]string{"load", m.NearName}, slices.Repeat([]string{passes}, 9)...)...).exits(0)
	x("load", m.NearName, passes).exits(249, "Couldn't attach XDP program on iface '"+m.NearName+"': Argument list too long(-7)\n", "10 slots")
	x("unload", m.NearName, "-a").exits(0)
}

func TestXDPLoaderAttachesAloneWhereThereCanBeNoChain(t *testing.T) {
	m := newMachine(t)
	object := kerneltest.ObjectFile(t, "pass")
	const check, falling = "Compatibility check for dispatcher program failed", "Falling back to loading single prog"
	alone := func(env []string, says ...string) {
		t.Helper()
		m.xdpLoader(env, "load", m.NearName, object, "-v").exits(0, says...)
		rows := m.xdpLoader(env, "status", m.NearName).rows()
		if want := fmt.Sprintf("%s xdp_pass native %d", m.NearName, m.native()); len(rows) != 1 || !strings.HasPrefix(strings.Join(rows[0], " "), want) {
			t.Errorf("the status is %q, want %q", rows, want)
		}
		m.xdpLoader(env, "load", m.NearName, object).exits(240,
			"can't replace; unload first", "Couldn't attach XDP program on iface '"+m.NearName+"': Device or resource busy(-16)\n", `"xdp_pass"`)
		m.xdpLoader(env, "unload", m.NearName, "-i", "4000000000").exits(1, "Program with ID 4000000000 not loaded on "+m.NearName+"\n")
		m.xdpLoader(env, "unload", m.NearName, "-i", itoa(m.native())).exits(0)
		m.holds(0)
		m.xdpLoader(env, "unload", m.NearName, "-a").exits(1, "No XDP program loaded on "+m.NearName+"\n")
	}
	together := func(env ...string) result { return m.xdpLoader(env, "load", m.NearName, object, object) }
	nowhere := t.TempDir()
	const skip = "LIBXDP_SKIP_DISPATCHER=1"
	alone([]string{skip})
	// Two can't do without, whatever the environment says.
	if hasFreplace(t) {
		together(skip).exits(0)
		m.xdpLoaderMembers("xdp_pass", "xdp_pass")
		m.xdpLoader(nil, "unload", m.NearName, "-a").exits(0)
	} else {
		together(skip).exits(161, "not supported")
	}
	m.holds(0)
	alone([]string{"LIBXDP_BPFFS=" + nowhere}, "No bpffs found at "+nowhere, check, falling)
	together("LIBXDP_BPFFS="+nowhere).exits(161, "not supported")
	m.holds(0)
	m.xdpLoader([]string{"LIBXDP_BPFFS=" + nowhere}, "clean").exits(254, "No bpffs found at "+nowhere)
	if !hasFreplace(t) {
		alone(nil, check, falling)
		return
	}
	t.Cleanup(func() { unix.Unmount(nowhere, unix.MNT_DETACH) })
	m.pins = nowhere
	m.xdpLoader([]string{"LIBXDP_BPFFS_AUTOMOUNT=1"}, "load", m.NearName, object).exits(0)
	if !bpffs.Is(nowhere) {
		t.Error("no bpffs was mounted")
	}
	m.xdpLoaderMembers("xdp_pass")
	m.xdpLoader(nil, "unload", m.NearName, "-a").exits(0)
}

func TestXDPLoadersExitCodesAreErrnos(t *testing.T) {
	m := newMachine(t)
	x := func(args ...string) result { t.Helper(); return m.xdpLoader(nil, args...) }
	files := map[string]string{}
	for _, name := range []string{"pass", "two", "socket", "bad"} {
		files[name] = kerneltest.ObjectFile(t, name)
	}
	object := func(name string) string { return files[name] }
	attach := "Couldn't attach XDP program on iface '" + m.NearName + "': "
	x("load", m.NearName, "/nope.o").exits(254, "Couldn't open file '/nope.o': No such file or directory")
	x("load", m.NearName, object("two"), "-n", "third").exits(254, "Couldn't open file '"+object("two")+"': No such file or directory", `"third"`)
	x("load", m.NearName, object("socket")).exits(254, "Couldn't open file '"+object("socket")+"'", "there is no XDP program")
	x("load", m.NearName, object("bad")).exits(243, attach+"Permission denied(-13)\n", "verifier refused")
	x("load", "nope", object("pass")).exits(1, "Couldn't find network interface 'nope'.\n")
	m.holds(0)
	if err := m.Near.Conn.Add("bridge", "bridge0"); err != nil {
		t.Fatal(err)
	}
	x("load", "bridge0", object("pass")).exits(161, "Attaching XDP program in native mode not supported - try SKB mode.\n")
	x("load", "bridge0", object("pass"), "-m", "skb").exits(0)
	rows := x("status", "bridge0").rows()
	if words := strings.Join(rows[0], " "); !strings.Contains(words, " skb ") {
		t.Errorf("the status is %q", rows)
	}
	x("unload", "bridge0", "-a").exits(0)

	// The holder of a link is not robbed.
	at := m.attach("filter", "--name", "mine")
	x("load", m.NearName, object("pass")).exits(240, attach+"Device or resource busy(-16)\n", fmt.Sprintf("link %d", at.LinkID))
	x("unload", m.NearName, "--all").exits(1, "Unable to detach XDP program: Device or resource busy\n", fmt.Sprintf("link %d", at.LinkID))
	x("unload", m.NearName, "-i", itoa(at.Program.ID)).exits(1, "Unable to detach XDP program: Device or resource busy\n")
	m.holds(at.Program.ID)
}

func TestXDPLoaderTakesTheFirstProgramAndPinsOnlyWhereItIsTold(t *testing.T) {
	m := newMachine(t)
	x := func(args ...string) result { t.Helper(); return m.xdpLoader(nil, args...) }
	x("load", m.NearName, kerneltest.ObjectFile(t, "two")).exits(0)
	if got := m.action(53); got != pass {
		t.Errorf("the first program of the file returns %d", got)
	}
	x("unload", m.NearName, "-a").exits(0)
	x("load", m.NearName, kerneltest.ObjectFile(t, "two"), "-s", "xdp/second").exits(0)
	if got := m.action(53); got != drop {
		t.Errorf("the program of that section returns %d", got)
	}
	x("unload", m.NearName, "-a").exits(0)

	dir := filepath.Join(kerneltest.BPFFS(t), "maps")
	x("load", m.NearName, kerneltest.ObjectFile(t, "pinned")).exits(0)
	x("unload", m.NearName, "-a").exits(0)
	x("load", m.NearName, kerneltest.ObjectFile(t, "pass"), "-p", dir).exits(0)
	if _, err := os.Stat(dir); err == nil {
		t.Error("a directory was left for maps that there are not")
	}
	x("unload", m.NearName, "-a").exits(0)
	x("load", m.NearName, kerneltest.ObjectFile(t, "pinned"), "-p", dir).exits(0)
	if _, err := os.Stat(filepath.Join(dir, "shared")); err != nil {
		t.Error(err)
	}
	x("unload", m.NearName, "-a").exits(0)
}

func TestProgramArraysAreKeptOrThatTheyCannotBeIsSaid(t *testing.T) {
	m := newMachine(t)
	needFreplace(t)
	object := kerneltest.ObjectFile(t, "tailcall")
	r := m.holdfast("attach", m.NearName, object, "--program", "enter", "--shared")
	m.holds(0)
	if r.code == 6 { // before some Linux after 5.10
		r.fails(6, "it makes tail calls, which this kernel does not let extensions do")
		m.xdpLoader(nil, "load", m.NearName, object, "-n", "enter").exits(161, "tail calls")
		m.holds(0)
		return
	}
	r.fails(2, "program array jumps", "pinned by name")
	// There it is for others to fill it.
	m.xdpLoader(nil, "load", m.NearName, object, "-n", "enter").exits(0)
	m.xdpLoaderMembers("enter")
	m.xdpLoader(nil, "unload", m.NearName, "-a").exits(0)
}

func TestXDPLoaderShowsAllInterfacesAndTheirFeatures(t *testing.T) {
	m := newMachine(t)
	rows := m.xdpLoader(nil, "st").rows()
	if len(rows) != 2 { // lo and Near
		t.Errorf("the status is %q", rows)
	}
	for _, row := range rows {
		if strings.Join(row[1:], " ") != "<No XDP program loaded!>" {
			t.Errorf("a row is %q", row)
		}
	}
	r := m.xdpLoader(nil, "features", m.NearName)
	if r.code != 0 {
		r.exits(161, "does not support querying XDP features", "Linux 6.3")
		return
	}
	var lines []string
	for line := range strings.Lines(r.out) {
		name, answer, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if a := strings.TrimSpace(answer); a != "yes" && a != "no" || !strings.HasPrefix(name, "NETDEV_XDP_ACT_") {
			t.Errorf("a line is %q", line)
		}
		lines = append(lines, line)
	}
	if len(lines) != 7 || lines[0] != "NETDEV_XDP_ACT_BASIC:\t\tyes\n" {
		t.Errorf("%s", r)
	}
}

func TestXDPLoaderCleansWhatNoChainUses(t *testing.T) {
	m := newMachine(t)
	left := filepath.Join(m.pins, "xdp", "dispatch-4000-4000000000")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	r := m.xdpLoader(nil, "clean", m.NearName).exits(0)
	if r.out != "Cleaning up detached XDP program links for "+m.NearName+"\n" {
		t.Errorf("%s", r)
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("of another interface: %v", err)
	}
	r = m.xdpLoader(nil, "clean", "-v").exits(0, left)
	if r.out != "Cleaning up detached XDP program links for all interfaces\n" {
		t.Errorf("%s", r)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("after the clean: %v", err)
	}
}
