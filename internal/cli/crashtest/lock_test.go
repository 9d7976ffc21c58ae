package crashtest

import (
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
)

// Whoever locks and unlocks and is killed has done it or has not, can ask again,
// and is never told that it is done because somebody asked for the opposite.
func TestLockUnlockAndAdoptCanBeKilledAnywhere(t *testing.T) {
	kerneltest.NoLeaks(t)
	theirs := kerneltest.Pass(t, "xdp_pass", nil)
	for _, op := range []struct {
		name, before, command, told, opposite string
	}{
		{"lock", "", "lock IF", "locked ", "unlock IF"},
		{"unlock", "lock IF", "unlock IF", "unlocked ", "lock IF"},
		{"adopt", "", "adopt IF pass.o --allow-gap", "adopted ", "detach IF"},
	} {
		if onAnotherKernel() && op.name != "lock" {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			s := newSite(t)
			conn, err := rtnl.Dial(-1)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			index := func() int {
				d, err := conn.Device(s.name)
				if err != nil {
					t.Fatal(err)
				}
				return d.Index
			}
			crash.Sweep{
				Sample: kerneltest.OneOf(5),
				Setup: func(t *testing.T) crash.Command {
					if op.before != "" {
						s.runs(t, op.before)
					}
					if op.name == "adopt" {
						if err := conn.SetXDP(index(), theirs.FD(), 0); err != nil {
							t.Fatal(err)
						}
					}
					return crash.Command{Path: "/proc/self/exe", Args: s.words(op.command), Env: s.env(), Counts: lasting}
				},
				Check: func(t *testing.T, run crash.Run) {
					told := strings.HasPrefix(run.Stdout, op.told)
					if !run.Reached && (run.Status.ExitStatus() != 0 || !told) {
						t.Errorf("undisturbed it was not acknowledged: %v", run)
					}
					s.settle(t)
					gap := op.name == "adopt" && s.attached(t) == nil // the one that was announced
					if run.Side == crash.Before && !told && !gap {
						s.runs(t, op.command)
					}
					if op.opposite == "detach IF" {
						if s.attached(t) != nil {
							s.runs(t, "detach IF --foreign --expect any")
						}
					} else {
						s.is(t, op.opposite, told || run.Side == crash.Before)
					}
					s.runs(t, "gc")
					s.empty(t)
				},
				BeforeOnly: true,
			}.Run(t)
		})
	}
}

// is makes the opposite change, which must have an effect if the first one was
// made, and leaves the interface unlocked.
func (s *site) is(t *testing.T, opposite string, made bool) {
	t.Helper()
	locks := opposite == "lock IF"
	if at := s.attached(t); made && (at == nil) != locks {
		t.Fatalf("before %s %s is attached", opposite, describe(at))
	} else if (at == nil) == locks {
		s.runs(t, opposite)
	}
	if at := s.attached(t); locks && at == nil || !locks && at != nil {
		t.Errorf("after %s %s is attached", opposite, describe(at))
	}
	if locks {
		s.runs(t, "unlock IF")
	}
}
