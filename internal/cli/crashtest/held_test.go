package crashtest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
)

// The command that run runs is the test binary once more, which the environment
// makes behave as holdfast.
func TestRunLeavesNothingWhereverItIsKilled(t *testing.T) {
	s := newSite(t)
	args := []string{"run", s.name, s.objects["tailcall"], "--program", "enter", "--", "/proc/self/exe", "version"}
	crash.Sweep{
		Setup: func(*testing.T) crash.Command {
			return crash.Command{Path: "/proc/self/exe", Args: args, Env: s.env(), Counts: points(byCommand)}
		},
		Check: func(t *testing.T, run crash.Run) {
			if !run.Reached && (run.Status.ExitStatus() != 0 || run.Stdout == "") {
				t.Errorf("undisturbed it did not run the command: %v", run)
			}
			s.settle(t)
			s.empty(t)
			if all := s.status(t); len(all) > 0 {
				t.Errorf("nothing is attached, and status shows %+v", all)
			}
			if stdout, stderr, err := s.process(t, args); err != nil || stdout == "" {
				t.Errorf("again: %v: %s", err, stderr)
			}
			s.empty(t)
		},
	}.Run(t)
}

func TestWhatIsAttachedWhileAProcessLivesIsHeldWhereverTheCommandIsKilled(t *testing.T) {
	s := newSite(t)
	var watched *kerneltest.Process
	var args []string
	crash.Sweep{
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
				s.settle(t) // the holder ends
				s.empty(t)
			}
			_, stderr, err := s.process(t, args)
			switch {
			case !acknowledged && err != nil:
				t.Errorf("again: %v: %s", err, stderr)
			case acknowledged && (err == nil || !strings.Contains(stderr, "conflict")):
				t.Errorf("again, while it is held: %v: %s", err, stderr)
			}
			watched.Kill()
			s.settle(t)
			s.empty(t)
		},
	}.Run(t)
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
