package crash

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// Sweep kills a command at every point that it has, before and after the call
// unless it says otherwise, one run each.
type Sweep struct {
	// Setup makes the state that the command starts from and returns the
	// command. It is called for each run with the run's own t, and leaves the
	// removal of what it made to t.Cleanup.
	Setup func(t *testing.T) Command
	// Check fails t if the state that the run left behind breaks an invariant.
	// It is called also for the runs that nothing disturbed. Processes that
	// the command had started may still be running, and are ended after it.
	Check func(t *testing.T, run Run)
	// BeforeOnly leaves out the kills after each call. Where every call counts
	// that has an effect, they leave what the kill before the next one leaves,
	// in half the time; what differs is only what the process itself has told.
	BeforeOnly bool
	// Sample leaves out points; its zero value leaves out none.
	Sample kerneltest.Sample

	// uncounted keeps the sweeps that test this package, and no operation of
	// Holdfast, out of the number of points.
	uncounted bool
}

// slack is by how many points two runs of the same command may differ: the Go
// runtime closes descriptors when it collects garbage, and a lock that is held
// for an instant by another process is asked for again.
const slack = 8

// Run runs the sweep, each kill as a subtest named after its point, and logs
// the number of points killed at. It calls Setup, the command and Check on the goroutine
// of the subtest, so that a Setup which locks it to its thread and enters
// namespaces has the command run in them.
//
// The point 3 alone is run by -run 'TestX/(before|after)_3'.
func (s Sweep) Run(t *testing.T) {
	t.Helper()
	// What holds if -run leaves the undisturbed run out: the number of points
	// and their names are not known then.
	whole, points, alone := Run{}, 1000, false
	ok := t.Run("undisturbed", func(t *testing.T) {
		whole = s.one(t, Trace)
		points, alone = len(whole.Points), len(whole.Children) == 0
		for _, p := range whole.Points {
			t.Log(p)
		}
		if points == 0 {
			t.Fatal("the command has no point to be killed at")
		}
	})
	if !ok {
		return
	}
	sides := []Side{Before, After}
	if s.BeforeOnly {
		sides = sides[:1]
	}
	kills := 0
	ran := false // whether -run has let the last kill be made
	for n, ended := 1+s.Sample.Skip, false; !ended; n += 1 + s.Sample.Between {
		if n > points+slack {
			if ran {
				t.Errorf("the command made %d points undisturbed, and goes on after as many and %d more", points, slack)
			}
			break
		}
		for _, side := range sides {
			name := fmt.Sprintf("%v %d", side, n)
			if n <= len(whole.Points) {
				p := whole.Points[n-1]
				name += " " + strings.TrimSpace(p.Call+" "+p.Op)
			}
			ran = false
			t.Run(name, func(t *testing.T) {
				ran = true
				if side == Before && n <= points {
					kills++
				}
				run := s.one(t, func(c Command) (Run, error) {
					c.Alone = c.Alone || alone
					return Kill(c, n, side)
				})
				if !run.Reached {
					ended = true
					if n <= points-slack {
						t.Errorf("the command made %d points undisturbed, and now ended after %d", points, n-1)
					}
				}
			})
			if ended {
				break
			}
		}
	}
	if !s.uncounted {
		t.Logf("COUNT crash points %d", kills)
	}
}

func (s Sweep) one(t *testing.T, start func(Command) (Run, error)) Run {
	t.Helper()
	run, err := start(s.Setup(t))
	if err != nil {
		t.Fatal(err)
	}
	defer run.EndChildren()
	defer func() {
		if t.Failed() {
			t.Log(run)
		}
	}()
	s.Check(t, run)
	return run
}
