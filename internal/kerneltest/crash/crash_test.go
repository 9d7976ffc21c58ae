package crash

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"golang.org/x/sys/unix"
)

// target returns a command that does the operation in a bpffs of its own. What
// libraries ask of bpf(2) when they are loaded does not count in it.
func target(t *testing.T, operation string) (c Command, dir string) {
	t.Helper()
	dir = kerneltest.BPFFS(t)
	return Command{
		Path:   "/proc/self/exe",
		Env:    []string{kerneltest.CommandEnv(operation), "DIR=" + dir},
		Counts: func(p Point) bool { return Changes(p) && p.Call != "bpf" && p.Call != "close" },
	}, dir
}

// changeTarget returns the command "change", with a network namespace to
// change besides. All that changes something counts in it.
func changeTarget(t *testing.T) (c Command, dir string, ns *kerneltest.NetNS) {
	t.Helper()
	c, dir = target(t, "change")
	ns = kerneltest.NewNetNS(t)
	c.Env = append(c.Env, "NETNS="+ns.Path())
	c.Counts = nil
	return c, dir, ns
}

// eachWay calls f for commands of which every call stops, and for those of which
// only some do.
func eachWay(t *testing.T, f func(t *testing.T, alone bool)) {
	for _, alone := range []bool{false, true} {
		t.Run(map[bool]string{false: "every call stops", true: "alone"}[alone], func(t *testing.T) { f(t, alone) })
	}
}

func mustTrace(t *testing.T, c Command) Run {
	t.Helper()
	run, err := Trace(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run.EndChildren)
	return run
}

func mustKill(t *testing.T, c Command, n int, side Side) Run {
	t.Helper()
	run, err := Kill(c, n, side)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run.EndChildren)
	return run
}

var netnsName = regexp.MustCompile(`net:\[\d+\]`)

// lines gives the points as text, without their numbers, with dir as DIR and
// every network namespace as NETNS.
func lines(points []Point, dir string) []string {
	var s []string
	for _, p := range points {
		_, line, _ := strings.Cut(p.String(), " ")
		line = netnsName.ReplaceAllString(line, "NETNS")
		s = append(s, strings.ReplaceAll(line, dir, "DIR"))
	}
	return s
}

// from returns the points from the first one with that call.
func from(points []Point, call string) []Point {
	return points[slices.IndexFunc(points, func(p Point) bool { return p.Call == call }):]
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestTraceListsTheCallsThatChangeStateInOrder(t *testing.T) {
	eachWay(t, traceListsTheCallsThatChangeStateInOrder)
}

func traceListsTheCallsThatChangeStateInOrder(t *testing.T, alone bool) {
	c, dir, _ := changeTarget(t)
	c.Alone = alone
	run := mustTrace(t, c)
	want := []string{
		"mkdirat DIR/hook",
		"flock LOCK_EX|LOCK_NB DIR/hook",
		"bpf BPF_MAP_CREATE crash",
		"bpf BPF_OBJ_PIN DIR/hook/map",
		"bpf BPF_MAP_UPDATE_ELEM",
		"close bpf-map",
		"setns NETNS", // and back, around each request
		"setns NETNS",
		"setns NETNS",
		"sendmsg RTM_SETLINK ifindex 1",
		"setns NETNS",
		"renameat2 DIR/hook/map DIR/hook/moved",
		"mkdirat DIR/hook = file exists",
		"unlinkat DIR/hook/moved",
		`write stdout "done\n"`,
		"exit_group 0",
	}
	if diff := cmp.Diff(want, lines(from(run.Points, "mkdirat"), dir)); diff != "" {
		t.Errorf("points (-want +got):\n%s\n%v", diff, run)
	}
	for i, p := range run.Points {
		if p.N != i+1 {
			t.Errorf("point %d has the number %d", i+1, p.N)
		}
	}
	if run.Stdout != "done\n" || run.Status.ExitStatus() != 0 || run.Reached {
		t.Error(run)
	}
}

func TestQueriesCountWhereAskedFor(t *testing.T) {
	eachWay(t, queriesCountWhereAskedFor)
}

func queriesCountWhereAskedFor(t *testing.T, alone bool) {
	c, dir, _ := changeTarget(t)
	c.Alone = alone
	c.Counts = func(p Point) bool { return p.Query && (p.Call != "openat" || strings.HasPrefix(p.On, dir+"/hook")) }
	run := mustTrace(t, c)
	want := []string{
		"openat DIR/hook",
		"bpf BPF_MAP_LOOKUP_ELEM",
		"sendto RTM_GETLINK ifindex 1",
	}
	if diff := cmp.Diff(want, lines(from(run.Points, "openat"), dir)); diff != "" {
		t.Errorf("points (-want +got):\n%s\n%v", diff, run)
	}
}

// effects is the state that the calls of the operation "change" bring about.
type effects struct {
	Dir, Pin, Moved, Down bool
	Stdout                string
}

// apply tells the effects of the calls that were let happen.
func apply(done []Point) effects {
	var e effects
	for _, p := range done {
		switch {
		case p.Call == "mkdirat":
			e.Dir = true
		case p.Op == "BPF_OBJ_PIN":
			e.Pin = true
		case p.Op == "RTM_SETLINK":
			e.Down = true
		case p.Call == "renameat2":
			e.Pin, e.Moved = false, true
		case p.Call == "unlinkat":
			e.Moved = false
		case p.Call == "write":
			e.Stdout = "done\n"
		}
	}
	return e
}

func observe(t *testing.T, dir string, ns *kerneltest.NetNS, run Run) effects {
	t.Helper()
	e := effects{
		Dir:    exists(dir + "/hook"),
		Pin:    exists(dir + "/hook/map"),
		Moved:  exists(dir + "/hook/moved"),
		Stdout: run.Stdout,
	}
	ns.In(t, func() error {
		lo, err := net.InterfaceByName("lo")
		if err == nil {
			e.Down = lo.Flags&net.FlagUp == 0
		}
		return err
	})
	return e
}

func TestACallKilledBeforeHasNoEffectAndOneKilledAfterKeepsIt(t *testing.T) {
	var dir string
	var ns *kerneltest.NetNS
	var undisturbed, runs int
	Sweep{
		Setup: func(t *testing.T) Command {
			var c Command
			c, dir, ns = changeTarget(t)
			return c
		},
		Check: func(t *testing.T, run Run) {
			if runs++; runs == 1 {
				undisturbed = len(run.Points)
			}
			done := run.Points
			if run.Reached && run.Side == Before {
				done = done[:len(done)-1]
			}
			if diff := cmp.Diff(apply(done), observe(t, dir, ns, run)); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
			last := run.Last()
			if complete := !run.Reached || last.Call == "exit_group" && run.Side == After; complete {
				if run.Status.ExitStatus() != 0 || last.Call != "exit_group" {
					t.Error("not complete")
				}
			} else if run.Status.Signal() != unix.SIGKILL {
				t.Error("not killed")
			}
		},
		uncounted: true,
	}.Run(t)
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // not all of them were to be run
	}
	// One run that nothing disturbs, two at each point, one that finds no
	// further point.
	if want := 2*undisturbed + 2; runs != want {
		t.Errorf("%d runs for %d points, want %d", runs, undisturbed, want)
	}
}

func TestFiftyKillsAtOnePointAllHitIt(t *testing.T) {
	var n int
	for i := range 51 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			c, dir, _ := changeTarget(t)
			c.Alone = i%4 < 2
			if i == 0 {
				n = mustTrace(t, c).pin(t)
				return
			}
			side := Side(i % 2)
			run := mustKill(t, c, n, side)
			if !run.Reached || run.pin(t) != n || len(run.Points) != n || run.Status.Signal() != unix.SIGKILL {
				t.Errorf("not killed %v %d: %v", side, n, run)
			}
			if got, want := exists(dir+"/hook/map"), side == After; got != want {
				t.Errorf("pinned: %v, want %v", got, want)
			}
		})
	}
}

// pin returns the number of the point that pins the map.
func (r Run) pin(t *testing.T) int {
	t.Helper()
	i := slices.IndexFunc(r.Points, func(p Point) bool { return p.Op == "BPF_OBJ_PIN" })
	if i < 0 {
		t.Fatalf("nothing is pinned: %v", r)
	}
	return i + 1
}

func TestAProcessThatEndsBeforeThePointIsToldApart(t *testing.T) {
	c, dir := target(t, "exit")
	run := mustKill(t, c, 3, Before)
	if diff := cmp.Diff([]string{"mkdirat DIR/exit", "exit_group 7"}, lines(run.Points, dir)); diff != "" {
		t.Errorf("points (-want +got):\n%s", diff)
	}
	if run.Reached || !run.Status.Exited() || run.Status.ExitStatus() != 7 {
		t.Error(run)
	}
}

func TestAfterExitGroupIsTheEndOfTheProcess(t *testing.T) {
	c, _ := target(t, "exit")
	if run := mustKill(t, c, 2, After); !run.Reached || run.Status.ExitStatus() != 7 {
		t.Error(run)
	}
}

func TestTheTraceGoesOnThroughAnExecveByAnotherThread(t *testing.T) {
	eachWay(t, theTraceGoesOnThroughAnExecveByAnotherThread)
}

func theTraceGoesOnThroughAnExecveByAnotherThread(t *testing.T, alone bool) {
	want := []string{"execve /proc/self/exe", "mkdirat DIR/exit", "exit_group 7"}
	tests := []struct {
		name   string
		n      int
		side   Side
		points int
		made   bool
	}{
		{"before execve", 1, Before, 1, false},
		{"after execve", 1, After, 1, false},
		{"before the first call of the new program", 2, Before, 2, false},
		{"after it", 2, After, 2, true},
		{"not killed", 4, Before, 3, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, dir := target(t, "exec")
			c.Alone = alone
			run := mustKill(t, c, tt.n, tt.side)
			if diff := cmp.Diff(want[:tt.points], lines(run.Points, dir)); diff != "" {
				t.Errorf("points (-want +got):\n%s\n%v", diff, run)
			}
			if got := exists(dir + "/exit"); got != tt.made {
				t.Errorf("made the directory: %v, want %v", got, tt.made)
			}
		})
	}
}

func TestAnInterruptedCallIsOnePoint(t *testing.T) { eachWay(t, anInterruptedCallIsOnePoint) }

func anInterruptedCallIsOnePoint(t *testing.T, alone bool) {
	c, dir := target(t, "interrupt")
	c.Alone = alone
	run := mustTrace(t, c)
	want := []string{"exit_group 0", "flock LOCK_EX DIR", "flock LOCK_EX DIR", "flock LOCK_UN DIR"}
	got := lines(run.Points, dir)
	slices.Sort(got) // the lock may be waited for before or after it is given up
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("points (-want +got):\n%s\n%v", diff, run)
	}
}

func TestChildrenRunFreeAndAreReported(t *testing.T) {
	c, dir := target(t, "fork")
	run := mustTrace(t, c)
	started := slices.IndexFunc(run.Points, func(p Point) bool { return p.Call == "write" })
	if started < 0 {
		t.Fatal(run)
	}
	run.EndChildren()
	if err := os.Remove(dir + "/outlived"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}

	run = mustKill(t, c, started+1, After)
	if !run.Reached || run.Status.Signal() != unix.SIGKILL {
		t.Fatal(run)
	}
	var running []Child
	for _, child := range run.Children {
		if child.Running() {
			running = append(running, child)
		}
	}
	if len(running) != 1 || fmt.Sprintln(running[0].PID) != run.Stdout {
		t.Fatalf("running children: %v, want the one of %v", running, run)
	}
	// Its parent is dead, so it makes its change now, with nobody tracing it.
	if !kerneltest.Eventually(func() bool { return exists(dir + "/outlived") }) {
		t.Error("the child made no change")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", running[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "\nTracerPid:\t0\n") {
		t.Errorf("the child is traced:\n%s", status)
	}
	run.EndChildren()
	if len(run.Children) != 0 {
		t.Error("children are still reported after their end")
	}
}

func TestACommandSaidToBeAloneMustNotStartAProcess(t *testing.T) {
	c, dir := target(t, "fork")
	c.Alone = true
	if run, err := Trace(c); err == nil || !strings.Contains(err.Error(), "it starts a process") {
		t.Errorf("error %v, %v", err, run)
	}
	if exists(dir + "/outlived") {
		t.Error("the process that it started ran on")
	}
}

func TestTheStatusOfOtherProcessesIsNotTaken(t *testing.T) {
	c, _, _ := changeTarget(t)
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			for ended := false; !ended; {
				select {
				case <-stop:
					ended = true
				default:
				}
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = []string{kerneltest.CommandEnv("unheard-of")}
				if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
					t.Errorf("another process: %v, want exit code 1", err)
				}
			}
		})
	}
	for range kerneltest.HostRounds(10) {
		mustKill(t, c, 1, Before)
	}
	close(stop)
	others.Wait()
}

func TestCommandsAreTracedSideBySide(t *testing.T) {
	for i := range 4 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			c, dir := target(t, "exit")
			for n := range 4 {
				run := mustKill(t, c, 1, Side(n%2))
				if !run.Reached || exists(dir+"/exit") != (run.Side == After) {
					t.Error(run)
				}
				os.Remove(dir + "/exit")
			}
		})
	}
}

func TestARunWithoutEndIsKilled(t *testing.T) {
	c, _ := target(t, "hang")
	c.Timeout = 100 * time.Millisecond
	if run, err := Trace(c); err == nil || !strings.Contains(err.Error(), "not at its end after 100ms") {
		t.Errorf("error %v, %v", err, run)
	}
}

func TestWhatCannotBeTracedIsAnError(t *testing.T) {
	if _, err := Trace(Command{Path: "/nonexistent"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
	if _, err := Kill(Command{Path: "/proc/self/exe"}, 0, Before); err == nil {
		t.Error("there is no point 0")
	}
}

func TestTheCPUsOfTheThreadAreGivenBack(t *testing.T) {
	c, _ := target(t, "exit")
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	mustTrace(t, c)
	if err := unix.SchedGetaffinity(0, &after); err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("%d CPUs, %d before", after.Count(), before.Count())
	}
}

func TestARunLeavesNoDescriptorOpen(t *testing.T) {
	c, dir := target(t, "fork")
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := open()
	for _, side := range []Side{Before, After} {
		run := mustKill(t, c, 100, side)
		run.EndChildren()
		os.Remove(dir + "/outlived")
	}
	if _, err := Trace(Command{Path: "/nonexistent"}); err == nil {
		t.Error("traced what is not there")
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

func TestTheCommandInheritsFiles(t *testing.T) {
	c, dir := target(t, "inherit")
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	c.Files = []*os.File{lock}
	run := mustTrace(t, c)
	if diff := cmp.Diff([]string{"flock LOCK_UN DIR", "exit_group 0"}, lines(run.Points, dir)); diff != "" {
		t.Errorf("points (-want +got):\n%s\n%v", diff, run)
	}
}
