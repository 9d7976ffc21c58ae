package clitest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/doctor"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// examined is what `holdfast doctor` finds: its exit code must fit.
func (m *machine) examined(args ...string) map[string][]doctor.Check {
	m.t.Helper()
	r := m.holdfast(append([]string{"doctor", "-o", "json"}, args...)...)
	var e struct {
		Version int
		Kind    string
		Result  struct{ Checks []doctor.Check }
	}
	if err := json.Unmarshal([]byte(r.out), &e); err != nil || e.Version != 1 || e.Kind != "doctor" {
		m.t.Fatalf("%s\nwhich is no result (%v)", r, err)
	}
	if want := map[bool]int{false: 0, true: 3}[doctor.Wrong(e.Result.Checks)]; r.code != want {
		m.t.Fatalf("%s\nwant exit code %d", r, want)
	}
	found := map[string][]doctor.Check{}
	for _, c := range e.Result.Checks {
		found[c.Name] = append(found[c.Name], c)
	}
	return found
}

// finds fails the test unless one finding of the check has that result and says all
// of this.
func finds(t *testing.T, found map[string][]doctor.Check, name string, result doctor.Result, says ...string) {
	t.Helper()
	if !slices.ContainsFunc(found[name], func(c doctor.Check) bool {
		return c.Result == result && !slices.ContainsFunc(says, func(s string) bool { return !strings.Contains(c.What+"\n"+c.Mend, s) })
	}) {
		t.Errorf("%s is %+v, want %s with %q", name, found[name], result, says)
	}
}

func TestTheDoctorTellsWhatIsWrong(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "holdfast.sock")
	flags := []string{"--socket", socket, "--config", dir}

	found := m.examined("--config", dir)
	for _, name := range []string{"capabilities", "kernel", "memlock", "state", "shared-hooks", "policy", "stale"} {
		finds(t, found, name, doctor.OK)
	}
	finds(t, found, "socket", doctor.Note, "there is no socket at /run/holdfast/holdfast.sock")

	// The socket.
	finds(t, m.examined(flags...), "socket", doctor.Problem, "there is no socket at "+socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	chmod(t, socket, 0o666)
	chmod(t, dir, 0o755)
	finds(t, m.examined(flags...), "socket", doctor.OK)
	chmod(t, socket, 0o600)
	finds(t, m.examined(flags...), "socket", doctor.Note, "chmod 0666")
	chmod(t, dir, 0o777)
	finds(t, m.examined(flags...), "socket", doctor.Problem, "another socket")
	chmod(t, dir, 0o755)
	l.SetUnlinkOnClose(false)
	l.Close()
	finds(t, m.examined(flags...), "socket", doctor.Problem, "nobody listens")

	// The policy.
	policy := filepath.Join(dir, "policy.yaml")
	write(t, policy, "version: 1\nrules: []\n")
	finds(t, m.examined(flags...), "policy", doctor.OK)
	write(t, policy, "version: 1\nrules: []\nnonsense: 1\n")
	finds(t, m.examined(flags...), "policy", doctor.Problem, policy+":3")
	write(t, policy, "version: 1\nrules: []\n")
	chmod(t, policy, 0o666)
	finds(t, m.examined(flags...), "policy", doctor.Problem, "chmod go-w "+policy)

	// What is attached.
	if err := m.Near.Conn.AddVethAt(1000, "foreign0", 1001, "foreign0p"); err != nil {
		t.Fatal(err)
	}
	theirs := kerneltest.Pass(t, "theirs", nil)
	if err := m.Near.Conn.SetXDP(1000, theirs.FD(), 0); err != nil {
		t.Fatal(err)
	}
	m.holdfast("attach", m.NearName, kerneltest.ObjectFile(t, "pass"), "--name", "mine").succeeds()
	m.holdfast("attach", "foreign0p", kerneltest.ObjectFile(t, "pass"), "--shared").succeeds()
	found = m.examined()
	finds(t, found, "foreign", doctor.Note, `"theirs" at foreign0`, "holdfast adopt foreign0")
	if len(found["foreign"]) != 1 {
		t.Errorf("foreign are %+v", found["foreign"])
	}
	finds(t, found, "stale", doctor.OK)
	m.holdfast("detach", "foreign0p").succeeds()
	if err := m.Near.Conn.Delete(m.NearIndex); err != nil {
		t.Fatal(err)
	}
	finds(t, m.examined(), "stale", doctor.Problem, "mine", "holdfast gc")
	m.holdfast("gc").succeeds()
	finds(t, m.examined(), "stale", doctor.OK)

	// The state.
	chmod(t, m.state, 0o755)
	finds(t, m.examined(), "state", doctor.Problem, "chmod 0700 "+m.state)
	chmod(t, m.state, 0o700)
	finds(t, m.examined(), "state", doctor.OK)
}

func TestTheDoctorTellsAStrangerWhatItCantSee(t *testing.T) {
	m := newMachine(t)
	r := m.finish(m.Near, m.asStranger("doctor"))
	if r.code != 3 || !strings.Contains(r.out, "problem  capabilities: the caller lacks ") || !strings.Contains(r.out, "         to mend it: run it as root\n") {
		t.Errorf("%s", r)
	}
	for _, name := range []string{"foreign", "stale", "state"} {
		if !strings.Contains(r.out, fmt.Sprintf("note     %s: ", name)) {
			t.Errorf("%s\nwhich has no note of %s", r, name)
		}
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
