package crashtest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
)

// The command that run runs is the test binary once more, which the environment
// makes behave as holdfast.
func TestRunLeavesNothingThatIsAttachedWhereverItIsKilled(t *testing.T) {
	s := newSite(t)
	args := []string{"run", s.name, s.objects["tailcall"], "--program", "enter", "--", "/proc/self/exe", "version"}
	crash.Sweep{
		BeforeOnly: kerneltest.InMachine(), Sample: kerneltest.OneOf(5),
		Setup: func(*testing.T) crash.Command {
			return crash.Command{Path: "/proc/self/exe", Args: args, Env: s.env(), Counts: points(byCommand)}
		},
		Check: func(t *testing.T, run crash.Run) {
			if !run.Reached && (run.Status.ExitStatus() != 0 || run.Stdout == "") {
				t.Errorf("undisturbed it did not run the command: %v", run)
			}
			s.forgotten(t, run, args)
		},
	}.Run(t)
}

// forgotten checks that nothing is attached any more, and that the same command
// goes well once more and leaves nothing.
func (s *site) forgotten(t *testing.T, run crash.Run, args []string) {
	t.Helper()
	s.settle(t)
	if at := s.attached(t); at != nil {
		t.Errorf("%v is attached, want nothing", at)
	}
	if all := s.status(t); len(all) > 0 {
		t.Errorf("nothing is attached, and status shows %+v", all)
	}
	if secondHalf(run) {
		s.gc(t, false)
		s.empty(t)
	}
	if stdout, stderr, err := s.process(t, args); err != nil || stdout == "" {
		t.Errorf("again: %v: %s", err, stderr)
	}
	s.empty(t)
}

// The process that holds for --while-pid is killed itself here, and the one that
// it waits for has ended already.
func TestTheHolderLeavesNothingThatIsAttachedWhereverItIsKilled(t *testing.T) {
	s := newSite(t)
	ended := startWaiting(t)
	fd, err := unix.PidfdOpen(ended.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	watched := os.NewFile(uintptr(fd), "pidfd")
	defer watched.Close()
	ended.Kill()
	parent, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	defer in.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	again := []string{"run", s.name, s.objects["tailcall"], "--program", "enter", "--", "/proc/self/exe", "version"}
	crash.Sweep{
		BeforeOnly: kerneltest.InMachine(), Sample: kerneltest.OneOf(5),
		Setup: func(*testing.T) crash.Command {
			return crash.Command{
				Path: "/proc/self/exe", Args: []string{"hold", s.name, s.objects["tailcall"], "--program", "enter"},
				Env: s.env(), Files: []*os.File{watched, parent, null}, Counts: points(byCommand),
			}
		},
		Check: func(t *testing.T, run crash.Run) {
			if !run.Reached && (run.Status.ExitStatus() != 0 || !strings.HasPrefix(run.Stdout, "attached ")) {
				t.Errorf("undisturbed it said nothing: %v", run)
			}
			s.forgotten(t, run, again)
		},
	}.Run(t)
}

func TestWhatIsAttachedWhileAProcessLivesIsHeldWhereverTheCommandIsKilled(t *testing.T) {
	s := newSite(t)
	var watched *kerneltest.Process
	var args []string
	crash.Sweep{
		BeforeOnly: kerneltest.InMachine(), Sample: kerneltest.OneOf(5),
		Setup: func(t *testing.T) crash.Command {
			watched = startWaiting(t)
			args = []string{
				"attach", s.name, s.objects["tailcall"], "--program", "enter",
				"--while-pid", fmt.Sprint(watched.PID()),
			}
			return crash.Command{Path: "/proc/self/exe", Args: args, Env: s.env(), Counts: points(byCommand)}
		},
		Check: func(t *testing.T, run crash.Run) {
			acknowledged := strings.HasPrefix(run.Stdout, "attached ")
			if !run.Reached && (run.Status.ExitStatus() != 0 || !acknowledged) {
				t.Errorf("undisturbed it was not acknowledged: %v", run)
			}
			if acknowledged {
				s.heldBy(t, run)
			} else {
				s.holderEnds(t, run)
			}
			_, stderr, err := s.process(t, args)
			switch {
			case !acknowledged && err != nil:
				t.Errorf("again: %v: %s", err, stderr)
			case acknowledged && (err == nil || !strings.Contains(stderr, "the name is taken")):
				t.Errorf("again, while it is held: %v: %s", err, stderr)
			}
			watched.Kill()
			s.holderEnds(t, run)
		},
	}.Run(t)
}

// holderEnds waits until the holder has taken its member off, and nothing is left.
func (s *site) holderEnds(t *testing.T, run crash.Run) {
	t.Helper()
	for _, c := range run.Children {
		if !kerneltest.Eventually(func() bool { return !c.Running() }) {
			t.Fatalf("process %d, which the command started, goes on", c.PID)
		}
	}
	s.settle(t)
	s.empty(t)
}

// heldBy checks that what is attached is held by a process that the command
// started, and by nobody else.
func (s *site) heldBy(t *testing.T, run crash.Run) {
	t.Helper()
	var all []arbiter.Status
	// The killed process gives its own descriptor back a little later.
	ok := kerneltest.Eventually(func() bool {
		all = s.status(t)
		return len(all) == 1 && len(all[0].Holders) == 1
	})
	if !ok || all[0].Lifetime != arbiter.Held {
		t.Fatalf("it was acknowledged, and status shows %+v", all)
	}
	holder := all[0].Holders[0]
	if !slices.ContainsFunc(run.Children, func(c crash.Child) bool { return c.PID == holder.PID }) {
		t.Errorf("process %d holds the link, which the command did not start", holder.PID)
	}
	if now := slices.DeleteFunc(links(t), func(l kernel.LinkInfo) bool { return slices.Contains(s.links, l) }); len(now) != 1 {
		t.Errorf("links %v are there, want one", now)
	}
}

// process runs the command undisturbed.
func (s *site) process(t *testing.T, args []string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := kerneltest.Command(commandProcess, args...)
	cmd.Env = append(cmd.Env, "HOLDFAST_BPFFS="+s.dir)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// startWaiting starts a process that waits for the end of the test.
func startWaiting(t *testing.T) *kerneltest.Process {
	t.Helper()
	return kerneltest.Start(t, kerneltest.Command("wait"))
}
