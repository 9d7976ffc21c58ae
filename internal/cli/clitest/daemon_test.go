package clitest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// daemonOf starts `holdfast daemon` for the machine, and returns its socket.
func (m *machine) daemonOf(etc string) (socket string, d *kerneltest.Process) {
	m.t.Helper()
	socket = filepath.Join(etc, "holdfast.sock")
	cmd := m.command("daemon", "--socket", socket, "--config", etc)
	log, err := os.Create(filepath.Join(etc, "log"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	d = kerneltest.Start(m.t, cmd)
	m.eventually("the daemon to be ready", func() bool { return strings.Contains(m.read(log.Name()), "msg=ready") })
	return socket, d
}

// etc is a directory that everybody can read, with the policy and pass.o.
func (m *machine) etc(policy string) string {
	m.t.Helper()
	dir, err := os.MkdirTemp("", "etc")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	for name, text := range map[string]string{"policy.yaml": policy, "pass.o": m.read(kerneltest.ObjectFile(m.t, "pass"))} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	return dir
}

func (m *machine) read(path string) string {
	m.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func (m *machine) eventually(what string, f func() bool) {
	m.t.Helper()
	if !kerneltest.Eventually(f) {
		m.t.Fatalf("waited in vain for %s", what)
	}
}

// A person's path: the administrator starts the daemon with a policy; an ordinary user
// attaches where that is allowed, is refused elsewhere, sees what there is, and is
// killed; the daemon is stopped, and the rest is there still.
func TestAnOrdinaryUserAttachesByTheDaemon(t *testing.T) {
	m := newMachine(t)
	etc := m.etc("version: 1\nrules:\n- name: samplers\n  match: {uid: [65534], interface: [" + m.NearName + "]}\n  allow: {verbs: [attach, detach], priority: 40-60}\n")
	object := filepath.Join(etc, "pass.o")
	if err := m.Near.Conn.AddVethAt(2000, "elsewhere", 2001, "elsewhere2"); err != nil {
		t.Fatal(err)
	}
	socket, d := m.daemonOf(etc)
	user := func(args ...string) result {
		t.Helper()
		return m.finish(m.Near, m.asStranger(append([]string{"--socket", socket}, args...)...))
	}
	wants := func(r result, code int, words ...string) {
		t.Helper()
		if r.code != code {
			t.Errorf("exit code %d, want %d: %s", r.code, code, r)
		}
		for _, w := range words {
			if !strings.Contains(r.out+r.err, w) {
				t.Errorf("it does not say %q: %s", w, r)
			}
		}
	}
	wants(user("attach", m.NearName, object, "--name", "mine"), 0, "attached "+m.NearName)
	wants(user("attach", "elsewhere", object), 5, "not permitted", "no rule of the policy matches")
	wants(user("attach", m.NearName, object, "--priority", "10"), 5, `rule "samplers"`, "the priority is 10")
	wants(user("lock", m.NearName), 5, "allows attach, detach")
	wants(user("attach", "nowhere", object), 7, "not found")
	wants(user("attach", m.NearName, object, "--pin-maps", "/sys/fs/bpf"), 2, "--embedded")
	wants(user("attach", m.NearName, object, "--embedded"), 2, "--socket")

	running := m.asStranger("--socket", socket, "run", m.NearName, object, "--name", "held", "--", self, "child", "until killed")
	held := m.Near.Start(t, running)
	if !held.Lines.Scan() {
		t.Fatal("the command did not start")
	}
	wants(user("status"), 0, "mine", "held", "uid 65534")
	watching := m.command("--socket", socket, "watch", m.NearName, "--since", "1h")
	watch := m.Near.Start(t, watching)
	told := ""
	for !strings.Contains(told, "attached "+m.NearName+" member held") && watch.Lines.Scan() {
		told += watch.Lines.Text() + "\n"
	}
	for _, want := range []string{"attached " + m.NearName + " member mine by uid 65534", "denied " + m.NearName, "the priority is 10"} {
		if !strings.Contains(told, want) {
			t.Errorf("watch does not say %q:\n%s", want, told)
		}
	}
	watch.Kill()
	held.Kill()
	m.eventually("what it held to be gone", func() bool { return !strings.Contains(user("status").out, "held by process") })

	if err := d.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.eventually("the policy to be read", func() bool { return strings.Contains(m.read(filepath.Join(etc, "log")), "read the policy") })
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Errorf("the daemon ended with %v: %s", err, m.read(filepath.Join(etc, "log")))
	}
	wants(user("status"), 7, "nobody listens there")
	wants(m.holdfast("status"), 0, "mine", "uid 65534")
	wants(m.holdfast("detach", m.NearName, "mine"), 0, "detached")
}
