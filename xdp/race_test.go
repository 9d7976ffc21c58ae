package xdp_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const contenders = 8

var (
	attachRounds        = kerneltest.HostRounds(200)
	replacesByContender = kerneltest.HostRounds(500)
)

// contest is processes that do the same at the same time. Each waits at one of
// two gates, which are pipes that all of them read: one write of as many bytes
// as there are contenders opens a gate for all, each of whom takes one.
type contest struct {
	gates   [2]*os.File
	members []*member
}

type member struct {
	pid     int
	reports *json.Decoder
}

// startContest starts the contenders, each with its number as last argument.
func startContest(t *testing.T, command string, args ...string) *contest {
	t.Helper()
	c := &contest{}
	var readers []*os.File
	for i := range c.gates {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
		c.gates[i] = w
	}
	for i := range contenders {
		cmd := kerneltest.Command(command, append(slices.Clone(args), strconv.Itoa(i))...)
		cmd.ExtraFiles = readers
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		c.members = append(c.members, &member{cmd.Process.Pid, json.NewDecoder(bufio.NewReader(out))})
	}
	for _, r := range readers {
		r.Close()
	}
	t.Cleanup(func() {
		for _, gate := range c.gates {
			gate.Close()
		}
	})
	return c
}

func (c *contest) open(t *testing.T, gate int) {
	t.Helper()
	if _, err := c.gates[gate].Write(make([]byte, contenders)); err != nil {
		t.Fatal(err)
	}
}

// reports reads one report of each contender.
func reports[R any](t *testing.T, c *contest) []R {
	t.Helper()
	all := make([]R, contenders)
	for i, m := range c.members {
		if err := m.reports.Decode(&all[i]); err != nil {
			t.Fatalf("contender %d gave no report: %v", i, err)
		}
	}
	return all
}

// contender is the other side of contest: what one process sees of it.
type contender struct {
	gates   [2]*os.File
	reports *json.Encoder
}

func newContender() *contender {
	return &contender{
		gates:   [2]*os.File{os.NewFile(3, "gate 0"), os.NewFile(4, "gate 1")},
		reports: json.NewEncoder(os.Stdout),
	}
}

// wait waits until the gate opens. It is false at the end of the contest.
func (c *contender) wait(gate int) bool {
	_, err := c.gates[gate].Read(make([]byte, 1))
	return err == nil
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "contender:", err)
	return 1
}

// openHook opens the hook that a contender was given, in native mode.
func openHook(netns, name string) (*xdp.Hook, error) {
	ns, err := xdp.OpenNamespace(netns)
	if err != nil {
		return nil, err
	}
	return ns.Hook(name, xdp.Native)
}

func loadPass(name string) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
}

// attempt is what came of one attach.
type attempt struct {
	Program  uint32
	Link     uint32 // 0 by netlink
	Won      bool
	Conflict bool
	Rival    *xdp.Attachment
	Err      string
}

// attachFirst is a contender for an empty hook. Between the gates it holds
// what it won.
func attachFirst(args []string) int {
	kind, netns, name, number := args[0], args[1], args[2], args[3]
	c := newContender()
	h, err := openHook(netns, name)
	if err != nil {
		return fail(err)
	}
	prog, err := loadPass("racer" + number)
	if err != nil {
		return fail(err)
	}
	info, err := kernel.ReadProgram(kernel.FD(prog.FD()))
	if err != nil {
		return fail(err)
	}
	attach := attachFirstByNetlink
	if kind == "link" {
		attach = attachFirstByLink
	}
	for c.wait(0) {
		link, release, err := attach(h, prog)
		a := attempt{Program: info.ID, Link: link, Won: err == nil, Conflict: errors.Is(err, xdp.ErrConflict)}
		var e *xdp.Error
		if errors.As(err, &e) {
			a.Rival, a.Err = e.Rival, e.Error()
		}
		if err := c.reports.Encode(a); err != nil {
			return fail(err)
		}
		if !c.wait(1) {
			return 0
		}
		if a.Won {
			if err := release(); err != nil {
				return fail(err)
			}
		}
		// The next round may begin.
		if err := c.reports.Encode(attempt{}); err != nil {
			return fail(err)
		}
	}
	return 0
}

func attachFirstByLink(h *xdp.Hook, prog *ebpf.Program) (id uint32, release func() error, err error) {
	l, err := h.AttachLink(prog)
	if err != nil {
		return 0, nil, err
	}
	info, err := l.Info()
	// Detaching takes effect at once; closing only would not.
	return info.ID, func() error { return errors.Join(l.Detach(), l.Close()) }, err
}

func attachFirstByNetlink(h *xdp.Hook, prog *ebpf.Program) (id uint32, release func() error, err error) {
	return 0, func() error { return h.Detach(xdp.Expect(prog)) }, h.Attach(prog, xdp.Empty)
}

func TestOfEightThatAttachFirstOneWinsAndTheOthersAreToldWho(t *testing.T) {
	for _, kind := range []string{"link", "netlink"} {
		t.Run(kind, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			v := kerneltest.NewVeth(t)
			if kind == "netlink" {
				// By a link the others find the program a moment before the
				// link, and with grace periods that happens often.
				kerneltest.FillDispatcher(t)
			}
			c := startContest(t, "attach-first", kind, v.Near.Path(), v.NearName)
			winners := map[int]int{}
			partly := 0
			for round := range attachRounds {
				c.open(t, 0)
				attempts := reports[attempt](t, c)
				winner, n := judge(t, c, kind, round, attempts)
				winners[winner]++
				partly += n
				c.open(t, 1)
				reports[attempt](t, c)
			}
			told := attachRounds * (contenders - 1)
			if partly > told/10 {
				t.Errorf("%d of %d losers were not told which link and process won", partly, told)
			}
			t.Logf("wins by contender: %v; %d of %d losers were told a part", winners, partly, told)
			t.Logf("COUNT race rounds %d", attachRounds)
		})
	}
}

// judge checks one round and returns its winner, and how many losers were told
// who won, but not by which link, or which process that is. The kernel attaches
// the program before it shows the link, and the link before its descriptor, and
// the winner may not come to run for a while in between.
func judge(t *testing.T, c *contest, kind string, round int, attempts []attempt) (winner, partly int) {
	t.Helper()
	winner = slices.IndexFunc(attempts, func(a attempt) bool { return a.Won })
	if winner < 0 {
		t.Fatalf("round %d: nobody won: %+v", round, attempts)
	}
	w := attempts[winner]
	held := xdp.HeldByNetlink
	if kind == "link" {
		held = xdp.HeldByLink
	}
	for i, a := range attempts {
		switch {
		case i == winner:
		case a.Won:
			t.Fatalf("round %d: contenders %d and %d both won", round, winner, i)
		case !a.Conflict || a.Rival == nil:
			t.Fatalf("round %d: contender %d lost with %q, want a conflict with a rival", round, i, a.Err)
		case a.Rival.Program.ID != w.Program || a.Rival.Held != held:
			t.Fatalf("round %d: contender %d was told %q, but program %d won, with link %d", round, i, a.Err, w.Program, w.Link)
		case kind == "link" && a.Rival.LinkID == 0:
			partly++
		case a.Rival.LinkID != w.Link:
			t.Fatalf("round %d: contender %d was told %q, but link %d won", round, i, a.Err, w.Link)
		case kind == "link" && !slices.ContainsFunc(a.Rival.Holders, func(h xdp.Holder) bool { return h.PID == c.members[winner].pid }):
			partly++
		}
	}
	return winner, partly
}

// success is a replace that the kernel acknowledged.
type success struct {
	Serial   int
	Program  uint32
	Replaced uint32
}

// account is what a contender did.
type account struct {
	Successes []success
	Conflicts int
}

const serialName = "serial"

// replaceInTurn is a contender that counts: it reads the serial of the program
// that is attached from its name and replaces it by one with the next. If
// another was faster, it starts again.
func replaceInTurn(args []string) int {
	pin, netns, name := args[0], args[1], args[2]
	c := newContender()
	h, err := openHook(netns, name)
	if err != nil {
		return fail(err)
	}
	held := xdp.HeldByNetlink
	replace := h.Attach
	if pin != "" {
		l, err := xdp.OpenPinned(pin)
		if err != nil {
			return fail(err)
		}
		held = xdp.HeldByLink
		replace = func(prog *ebpf.Program, expect xdp.Expectation) error {
			return l.Replace(xdp.ReplaceOptions{Program: prog, Expect: expect})
		}
	}
	look := func() (xdp.Program, error) {
		s, err := h.Query()
		if err != nil {
			return xdp.Program{}, err
		}
		now := s.At(xdp.Native)
		if now == nil || now.Held != held {
			return xdp.Program{}, fmt.Errorf("query says %+v, want something held by %s", now, held)
		}
		return now.Program, nil
	}
	// All look before anybody replaces, so that of the first eight replaces one
	// succeeds, and the others are in each other's way on any machine.
	var a account
	now, err := look()
	if err != nil {
		return fail(err)
	}
	if err := c.reports.Encode(a); err != nil {
		return fail(err)
	}
	c.wait(0)
	for ; len(a.Successes) < replacesByContender; now, err = look() {
		if err != nil {
			return fail(err)
		}
		if now.Name == "" {
			continue // replaced and gone before its name was read
		}
		done, err := replaceNext(now, replace)
		switch {
		case errors.Is(err, xdp.ErrConflict):
			a.Conflicts++
		case err != nil:
			return fail(err)
		default:
			a.Successes = append(a.Successes, done)
		}
	}
	if err := c.reports.Encode(a); err != nil {
		return fail(err)
	}
	c.wait(1)
	return 0
}

func replaceNext(now xdp.Program, replace func(*ebpf.Program, xdp.Expectation) error) (success, error) {
	serial, err := serialOf(now.Name)
	if err != nil {
		return success{}, err
	}
	prog, err := loadPass(fmt.Sprintf("%s%d", serialName, serial+1))
	if err != nil {
		return success{}, err
	}
	defer prog.Close()
	info, err := kernel.ReadProgram(kernel.FD(prog.FD()))
	if err != nil {
		return success{}, err
	}
	if err := replace(prog, xdp.ExpectID(now.ID)); err != nil {
		return success{}, err
	}
	return success{Serial: serial + 1, Program: info.ID, Replaced: now.ID}, nil
}

func serialOf(name string) (int, error) {
	number, ok := strings.CutPrefix(name, serialName)
	if !ok {
		return 0, fmt.Errorf("the program attached is %q, which is no contender's", name)
	}
	return strconv.Atoi(number)
}

func TestNoReplaceOfEightThatExpectTheProgramTheySawIsLost(t *testing.T) {
	for _, kind := range []string{"link", "netlink"} {
		t.Run(kind, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			v := kerneltest.NewVeth(t)
			// Else each replace would wait for an RCU grace period.
			kerneltest.FillDispatcher(t)
			h := open(t, v, xdp.Native)
			first := kerneltest.Pass(t, serialName+"0", nil)
			pin := ""
			if kind == "link" {
				pin = filepath.Join(kerneltest.BPFFS(t), "link")
				if err := attachLink(t, h, first).Persist(pin); err != nil {
					t.Fatal(err)
				}
			} else if err := h.Attach(first, xdp.Empty); err != nil {
				t.Fatal(err)
			}
			c := startContest(t, "replace", pin, v.Near.Path(), v.NearName)
			reports[account](t, c) // all have looked
			c.open(t, 0)
			accounts := reports[account](t, c)
			c.open(t, 1)
			checkSuccession(t, h, kerneltest.ProgramID(t, first), accounts)
		})
	}
}

// checkSuccession checks that the successes of all contenders form one line,
// from the first program to the one that is attached at the end, in which each
// replaced its predecessor.
func checkSuccession(t *testing.T, h *xdp.Hook, first uint32, accounts []account) {
	t.Helper()
	total := contenders * replacesByContender
	line := make([]success, total+1)
	line[0] = success{Program: first}
	conflicts := 0
	for i, a := range accounts {
		conflicts += a.Conflicts
		for _, s := range a.Successes {
			if s.Serial < 1 || s.Serial > total || line[s.Serial].Serial != 0 {
				t.Fatalf("contender %d made serial %d, of 1 to %d each once: an update was lost", i, s.Serial, total)
			}
			line[s.Serial] = s
		}
	}
	for n := 1; n <= total; n++ {
		if line[n].Replaced != line[n-1].Program {
			t.Fatalf("serial %d replaced program %d, but serial %d was program %d: an update was lost", n, line[n].Replaced, n-1, line[n-1].Program)
		}
	}
	if now := attached(t, h); now != line[total].Program {
		t.Errorf("program %d is attached at the end, want %d", now, line[total].Program)
	}
	if conflicts < contenders-1 {
		t.Errorf("%d conflicts, want %d or more: all began with the same program", conflicts, contenders-1)
	}
	t.Logf("%d conflicts", conflicts)
	t.Logf("COUNT race replaces %d", total)
}
