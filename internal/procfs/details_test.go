package procfs

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

func TestSocketsWithDescriptorsUnderWayAreFoundOnce(t *testing.T) {
	proc := t.TempDir()
	fakeProcess(t, proc, "10", "server", map[string][2]string{
		"3": {"socket:[4711]", "pos:\t0\nscm_fds: 2\n"},
		"4": {"socket:[4711]", "pos:\t0\nscm_fds: 2\n"}, // a second one
		"5": {"socket:[4712]", "pos:\t0\nscm_fds: 0\n"},
		"6": {"socket:[4713]", "pos:\t0\n"}, // not a Unix socket
		"7": {"socket:[4714]", ""},          // closed meanwhile
		"8": {"socket:[", "scm_fds: 1\n"},
		"9": {"/dev/null", ""},
	})
	fakeProcess(t, proc, "self", "not a pid", map[string][2]string{"3": {"socket:[4715]", "scm_fds: 1\n"}})
	got, err := inFlight(proc)
	if err != nil || !slices.Equal(got, []Socket{{Holder{10, "server"}, 4711, 2}}) {
		t.Errorf("found %+v (%v), want two descriptors under way to socket 4711", got, err)
	}
}

func TestDetailsAreThoseOfTheProcess(t *testing.T) {
	d, err := ReadDetails(os.Getpid())
	if err != nil || d.Parent != os.Getppid() || d.Comm != Comm(os.Getpid()) || d.Orphan {
		t.Errorf("they are %+v (%v)", d, err)
	}
	if since := time.Since(d.Started); since < -2*time.Second || since > 24*time.Hour {
		t.Errorf("it started %s ago", since)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDetails(cmd.Process.Pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("of one that has ended: %v", err)
	}
}
