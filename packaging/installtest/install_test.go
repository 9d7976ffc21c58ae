package installtest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"machine": serve})
}

// packages is the directory of Holdfast's own packages.
func packages(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("HOLDFAST_TEST_PACKAGES")
	if dir == "" {
		t.Fatal("HOLDFAST_TEST_PACKAGES names no directory with packages: make test-host and make test-vm build them")
	}
	return dir
}

func deb(version string) string { return "/packages/holdfast_" + version + "_amd64.deb" }

const (
	daemon    = "holdfast daemon"
	state     = "/run/holdfast/bpf"
	policy    = "/etc/holdfast/policy.yaml"
	calls     = "/run/systemctl.calls"
	stays     = "stays attached"
	theirOwn  = "# The administrator wrote this."
	systemctl = "#!/bin/sh\necho \"$*\" >>" + calls + "\n"
)

func TestAChainOutlivesTheUpgradeAndTheRemovalOfThePackage(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := packages(t)
	veth := kerneltest.NewVeth(t)
	t.Cleanup(func() {
		for _, ns := range []*kerneltest.NetNS{veth.Near, veth.Far} {
			devices, _ := ns.Conn.Devices()
			for _, d := range devices {
				ns.Conn.Delete(d.Index) // at once, and not when the kernel gets to the namespace
			}
		}
	})
	m := newMachine(t, veth.Near, dir)
	m.write("/usr/bin/systemctl", systemctl)
	m.write("/root/mark.o", string(bpfprog.ELF("mark")))
	m.run("chmod", "755", "/usr/bin/systemctl")
	m.run("mkdir", "-p", "/run/systemd/system")
	member := func(verb, name string, mark int) []string {
		return []string{"holdfast", verb, veth.NearName, "/root/mark.o", "--program", "xdp_mark", "--name", name, "--set", fmt.Sprintf("mark=%d", mark)}
	}

	m.run("dpkg", "--install", deb("1.0"))
	m.verify()
	if got := m.run("holdfast", "version"); !strings.Contains(got, "1.0") {
		t.Errorf("the version is %s", got)
	}
	m.run(member("attach", "permanent", 1)...)
	m.must(request{Daemon: []string{"holdfast", "daemon"}})
	m.run(member("attach", "asked-for", 2)...)
	m.must(request{Start: append(member("run", "held", 3), "--", "sleep", "infinity")})
	m.eventually("held", "holdfast", "status", veth.NearName)
	m.write("/root/own", theirOwn+"\n")
	m.run("sh", "-c", "cat /root/own >>"+policy)

	traffic := kerneltest.StartMarked(t, veth)
	traffic.AwaitArrived(10)
	m.run("dpkg", "--install", deb("1.1"))
	m.verify()
	m.called("try-restart holdfast.service")
	if got := m.run("holdfast", "version"); !strings.Contains(got, "1.1") {
		t.Errorf("the version is %s", got)
	}
	if got := m.run("cat", policy); !strings.Contains(got, theirOwn) {
		t.Errorf("the upgrade has taken what the administrator wrote:\n%s", got)
	}
	m.must(request{Stop: daemon})
	traffic.AwaitArrived(traffic.Arrived() + 10)
	m.must(request{Daemon: []string{"holdfast", "daemon"}})
	// The new one knows what there is, and does what it is asked for.
	if got := m.run("holdfast", "status", veth.NearName); !inOrder(got, "permanent", "asked-for", "held") {
		t.Errorf("the status is\n%s", got)
	}
	m.run("holdfast", "set", veth.NearName, "permanent", "--priority", "10")
	traffic.AwaitArrived(traffic.Arrived() + 10)

	files := strings.Fields(m.run("dpkg", "--listfiles", "holdfast"))
	if got := m.run("dpkg", "--remove", "holdfast"); !strings.Contains(got, stays) {
		t.Errorf("who removes the package is told\n%s", got)
	}
	m.called("disable --now holdfast.socket holdfast.service")
	m.must(request{Stop: daemon})
	if m.has("/usr/bin/holdfast") || !m.has(policy) {
		t.Errorf("the command is there: %t, the policy is: %t", m.has("/usr/bin/holdfast"), m.has(policy))
	}
	m.run("dpkg", "--purge", "holdfast")
	files = slices.DeleteFunc(files, func(file string) bool { return !strings.Contains(file, "holdfast") })
	left := m.ask(request{Run: append([]string{"ls", "-d"}, files...)})
	if got := strings.Count(left.Output, "No such file"); got != len(files) || got == 0 {
		t.Errorf("of %d files are left\n%s", len(files), left.Output)
	}
	traffic.AwaitArrived(traffic.Arrived() + 10)
	packets := traffic.End()
	wrong := 0
	for _, p := range packets {
		if !bytes.Equal(p.Marks, []byte{1, 2, 3}) {
			if wrong++; wrong < 10 {
				t.Errorf("packet %d met the members %v", p.Number, p.Marks)
			}
		}
	}
	t.Logf("%d packets, %d of them met another chain", len(packets), wrong)

	// What the removal says is true, once the kernel has got to it.
	m.must(request{Unmount: state})
	for end := time.Now().Add(time.Minute); !meetsNothing(t, veth); {
		if time.Now().After(end) {
			t.Fatalf("without %s packets meet members", state)
		}
	}
}

// meetsNothing tells whether the next packets meet no member.
func meetsNothing(t *testing.T, veth *kerneltest.Veth) bool {
	t.Helper()
	traffic := kerneltest.StartMarked(t, veth)
	traffic.AwaitArrived(5)
	return !slices.ContainsFunc(traffic.End(), func(p kerneltest.Marked) bool { return len(p.Marks) > 0 })
}

// write writes a file of the machine.
func (m *machine) write(path, text string) {
	m.Helper()
	m.must(request{Write: path, Text: []byte(text)})
}

// verify has dpkg compare the files with the package.
func (m *machine) verify() {
	m.Helper()
	for line := range strings.Lines(m.run("dpkg", "--verify", "holdfast")) {
		if !strings.HasSuffix(strings.TrimSpace(line), " c "+policy) { // which may be changed
			m.Errorf("dpkg --verify says %s", line)
		}
	}
}

// called checks what systemd was asked for, and forgets it.
func (m *machine) called(want string) {
	m.Helper()
	if got := m.run("cat", calls); !strings.Contains(got, "daemon-reload\n") || !strings.Contains(got, want+"\n") {
		m.Errorf("systemctl was called with\n%s", got)
	}
	m.run("rm", calls)
}

func inOrder(text string, words ...string) bool {
	for _, word := range words {
		_, after, found := strings.Cut(text, word)
		if !found {
			return false
		}
		text = after
	}
	return true
}
