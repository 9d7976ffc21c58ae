package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// healthy is a host where nothing is wrong.
func healthy() Host {
	var all []features.Feature
	for _, name := range append([]string{"freplace", "btf"}, needed...) {
		all = append(all, features.Feature{Name: name, About: "about " + name, Supported: features.Yes})
	}
	return Host{
		Release: "6.12.1", Features: all,
		Lockdown: "[none] integrity confidentiality", UnprivilegedBPF: "2",
		State: File{Path: "/run/holdfast/bpf", Mode: fs.ModeDir | 0o700},
		Pins:  "/sys/fs/bpf", PinsMounted: true,
		Socket:      File{Path: "/run/holdfast/holdfast.sock", Mode: fs.ModeSocket | 0o666},
		SocketDir:   File{Path: "/run/holdfast", Mode: fs.ModeDir | 0o755},
		PolicyFiles: []File{{Path: "/etc/holdfast/policy.yaml", Mode: 0o644}},
	}
}

func TestAHealthyHostIsAllOK(t *testing.T) {
	checks := healthy().Checks()
	names := map[string]bool{}
	for _, c := range checks {
		names[c.Name] = true
		if c.Result != OK || c.Mend != "" || c.What == "" {
			t.Errorf("%+v", c)
		}
	}
	if len(names) != 12 || Wrong(checks) {
		t.Errorf("there are %d checks; wrong: %v", len(names), Wrong(checks))
	}
}

func (h *Host) feature(name string, supported features.Answer, since, reason string) {
	f := features.Find(h.Features, name)
	f.Supported, f.Since, f.Reason = supported, since, reason
}

func TestEachThingThatIsWrongIsToldWithWhatMendsIt(t *testing.T) {
	missing := fmt.Errorf("stat: %w", os.ErrNotExist)
	denied := fmt.Errorf("stat: %w", os.ErrPermission)
	for _, c := range []struct {
		name       string
		change     func(*Host)
		check      string
		result     Result
		what, mend string
	}{
		{"no capability", func(h *Host) { h.Missing = []string{"CAP_NET_ADMIN"} }, "capabilities", Problem, "CAP_NET_ADMIN", "root"},
		{"an old kernel", func(h *Host) { h.Release = "5.4.0-42-generic" }, "kernel", Problem, "5.4.0-42-generic", "5.10"},
		{"no links", func(h *Host) { h.feature("link", features.No, "5.9", "EINVAL") }, "kernel", Problem, "link (about link): no, EINVAL", "Linux 5.9 or later"},
		{"links that can't be tried", func(h *Host) { h.feature("link", features.Unknown, "5.9", "not permitted") }, "kernel", Note, "not permitted", "holdfast features"},
		{"no freplace", func(h *Host) { h.feature("freplace", features.No, "", "EPERM") }, "engines", Note, "EPERM", ""},
		{"no BTF", func(h *Host) { h.feature("btf", features.No, "", "none") }, "engines", Problem, "one member only", "CONFIG_DEBUG_INFO_BTF"},
		{"engines that can't be tried", func(h *Host) { h.feature("freplace", features.Unknown, "", "not permitted") }, "engines", Note, "not permitted", "holdfast features"},
		{"lockdown", func(h *Host) { h.Lockdown = "none integrity [confidentiality]" }, "lockdown", Note, "confidentiality", "lockdown=integrity"},
		{"a limit on memory", func(h *Host) { h.Memlock = unix.EPERM }, "memlock", Problem, "operation not permitted", "LimitMEMLOCK=infinity"},
		{"programs of everybody", func(h *Host) { h.UnprivilegedBPF = "0" }, "unprivileged-bpf", Note, "without privilege", "sysctl -w kernel.unprivileged_bpf_disabled=1"},

		{"a state that others may not read", func(h *Host) { h.StateErr = fmt.Errorf("open: %w", xdp.ErrPermission) }, "state", Note, "can't be read", "root"},
		{"a state that can't be opened", func(h *Host) { h.StateErr = errors.New("strange") }, "state", Problem, "strange", "/run/holdfast/bpf"},
		{"no state", func(h *Host) { h.State.Err = missing }, "state", Note, "the first change makes it", ""},
		{"a state that can't be seen", func(h *Host) { h.State.Err = denied }, "state", Note, "can't be seen", "root"},
		{"an open state", func(h *Host) { h.State.Mode = fs.ModeDir | 0o755 }, "state", Problem, "mode 0755", "chmod 0700 /run/holdfast/bpf"},
		{"somebody's state", func(h *Host) { h.State.UID = 1000 }, "state", Problem, "uid 1000", "chown root /run/holdfast/bpf"},
		{"no bpffs", func(h *Host) { h.PinsMounted = false }, "shared-hooks", Note, "/sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf"},

		{"no socket", func(h *Host) { h.Socket.Err = missing }, "socket", Note, "there is no socket", "holdfast.socket"},
		{"no socket where one was named", func(h *Host) { h.Socket.Err, h.Named = missing, true }, "socket", Problem, "there is no socket", "holdfast.socket"},
		{"a socket out of sight", func(h *Host) { h.Socket.Err = denied }, "socket", Problem, "can't be looked at", "chmod 0755 /run/holdfast"},
		{"a file for a socket", func(h *Host) { h.Socket.Mode = 0o644 }, "socket", Problem, "is no socket", "remove it"},
		{"a dead socket", func(h *Host) { h.Connect = unix.ECONNREFUSED }, "socket", Problem, "nobody listens", "systemctl restart holdfast.socket"},
		{"a closed socket", func(h *Host) { h.Connect = unix.EACCES }, "socket", Problem, "can't be reached", "chmod 0666"},
		{"a socket for root", func(h *Host) { h.Socket.Mode = fs.ModeSocket | 0o660 }, "socket", Note, "mode 0660", "chmod 0666"},
		{"somebody's socket", func(h *Host) { h.Socket.UID = 1000 }, "socket", Problem, "uid 1000", "restart"},
		{"a directory that all may write to", func(h *Host) { h.SocketDir.Mode = fs.ModeDir | 0o777 }, "socket", Problem, "another socket", "chmod 0755 /run/holdfast"},
		{"a directory of root alone", func(h *Host) { h.SocketDir.Mode = fs.ModeDir | 0o700 }, "socket", Problem, "only root reaches", "chmod 0755 /run/holdfast"},

		{"a bad policy", func(h *Host) { h.Policy = errors.New("policy.yaml:3:1: no") }, "policy", Problem, "policy.yaml:3:1", "mend the file"},
		{"a policy that can't be read", func(h *Host) { h.Policy = denied }, "policy", Note, "can't be read", "root"},
		{"a policy of everybody", func(h *Host) { h.PolicyFiles[0].Mode = 0o666 }, "policy", Problem, "mode 0666", "chmod go-w /etc/holdfast/policy.yaml"},

		{"another's program", func(h *Host) {
			h.Foreign = []arbiter.Status{{Namespace: "blue", Interface: "eth0", Attachment: xdp.Attachment{Held: xdp.HeldByNetlink, Program: xdp.Program{ID: 7, Name: "theirs"}}}}
		}, "foreign", Note, `program 7 "theirs" at eth0 in blue`, "holdfast adopt eth0"},
		{"another's link", func(h *Host) {
			h.Foreign = []arbiter.Status{{Interface: "eth0", Attachment: xdp.Attachment{Held: xdp.HeldByLink}}}
		}, "foreign", Note, "at eth0 is not", "holders"},
		{"interfaces that can't be seen", func(h *Host) { h.AttachedErr = denied }, "foreign", Note, "can't be told", "root"},
		{"a stale record", func(h *Host) { h.Stale = []arbiter.Stale{{Entry: "c1-2", Why: "its interface is gone"}} }, "stale", Problem, "(c1-2): its interface is gone", "holdfast gc"},
		{"stale pins", func(h *Host) {
			h.Left = []libxdp.Cleaned{{Path: "/sys/fs/bpf/xdp/x", Reason: "attached nowhere", Removed: true}}
		}, "stale", Problem, "attached nowhere", "holdfast gc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := healthy()
			c.change(&h)
			checks := h.Checks()
			var found []Check
			for _, check := range checks {
				if check.Name == c.check && check.Result != OK {
					found = append(found, check)
				}
			}
			if len(found) != 1 || found[0].Result != c.result || !strings.Contains(found[0].What, c.what) || !strings.Contains(found[0].Mend, c.mend) ||
				(c.mend == "") != (found[0].Mend == "") {
				t.Errorf("it is %+v, want %s of %q, mended by %q", found, c.result, c.what, c.mend)
			}
			if Wrong(checks) != (c.result == Problem) {
				t.Errorf("wrong: %v", Wrong(checks))
			}
		})
	}
}

func TestWhatIsKeptIsNotStale(t *testing.T) {
	h := healthy()
	h.Left = []libxdp.Cleaned{{Path: "/sys/fs/bpf/xdp/x", Reason: "another namespace's"}}
	if Wrong(h.Checks()) {
		t.Error("pins that stay are taken for stale ones")
	}
}

func TestWhoCantSeeAllDoesNotSayThatAllIsWell(t *testing.T) {
	h := healthy()
	h.Missing = []string{"CAP_SYS_ADMIN"}
	for _, c := range h.Checks() {
		if (c.Name == "foreign" || c.Name == "stale") && c.Result != Note {
			t.Errorf("%+v", c)
		}
	}
}
