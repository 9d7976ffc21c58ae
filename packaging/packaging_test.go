package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
)

// one is the only value that a unit has for a key.
func one(t *testing.T, unit, key string) string {
	t.Helper()
	values := Values(unit, key)
	if len(values) != 1 {
		t.Fatalf("%s has the values %q, want one", key, values)
	}
	return values[0]
}

func TestTheUnitsSayWhatTheDaemonReliesOn(t *testing.T) {
	for _, c := range []struct{ unit, key, want, why string }{
		{Socket, "ListenStream", "/run/holdfast/holdfast.sock", "clients look for it there"},
		{Socket, "FileDescriptorName", "holdfast", "the daemon tells it from stored descriptors by that"},
		{Socket, "SocketMode", "0666", "users without privilege ask, too"},
		{Socket, "DirectoryMode", "0755", "they must reach it"},
		{Service, "ExecStart", "/usr/bin/holdfast daemon", "scripts/install-units puts another path in its place"},
		{Service, "Type", "notify", "who starts after it finds chains restored"},
		{Service, "Requires", "holdfast.socket", "the socket is there without the daemon"},
		{Service, "KillMode", "process", "its end ends nobody else"},
		{Service, "LimitMEMLOCK", "infinity", "before Linux 5.11 programs count against it"},
		{Service, "NoNewPrivileges", "yes", "nothing that it starts may have more"},
		{Service, "ProtectSystem", "strict", "it writes to its state only"},
	} {
		if got := one(t, c.unit, c.key); got != c.want {
			t.Errorf("%s=%s, want %s: %s", c.key, got, c.want, c.why)
		}
	}
}

func TestTheStateAndTheSocketOutliveTheDaemon(t *testing.T) {
	dir := "/run/" + one(t, Service, "RuntimeDirectory")
	for _, path := range []string{arbiter.DefaultDir, one(t, Socket, "ListenStream")} {
		if filepath.Dir(path) != dir {
			t.Errorf("%s is not in %s", path, dir)
		}
	}
	if got := one(t, Service, "RuntimeDirectoryPreserve"); got != "yes" {
		t.Errorf("RuntimeDirectoryPreserve=%s: a stop would remove the socket that systemd still listens on", got)
	}
	if mode := one(t, Service, "RuntimeDirectoryMode"); mode != one(t, Socket, "DirectoryMode") {
		t.Errorf("the directory has mode %s once the daemon has started", mode)
	}
}

// The daemon goes to the mount namespace of process 1 for the state, see package
// bpffs, and to others' network namespaces.
func TestTheDaemonMayLeaveItsNamespaces(t *testing.T) {
	kinds := strings.Fields(one(t, Service, "RestrictNamespaces"))
	caps := strings.Fields(one(t, Service, "CapabilityBoundingSet"))
	for _, kind := range []string{"mnt", "net"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("RestrictNamespaces= forbids %s", kind)
		}
	}
	for _, c := range []string{"CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"} {
		if !slices.Contains(caps, c) {
			t.Errorf("CapabilityBoundingSet= lacks %s", c)
		}
	}
}

// install installs the units below a directory.
func install(t *testing.T, dir, prefix string) {
	t.Helper()
	if out, err := exec.Command("../scripts/install-units", prefix, dir).CombinedOutput(); err != nil {
		t.Fatalf("scripts/install-units: %v\n%s", err, out)
	}
}

func TestInstalledUnitsStartTheInstalledCommand(t *testing.T) {
	dir := t.TempDir()
	install(t, dir, "/opt/x|y&z")
	units := filepath.Join(dir, "/opt/x|y&z/lib/systemd/system")
	service, err := os.ReadFile(filepath.Join(units, "holdfast.service"))
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(Service, "/usr/bin/holdfast", "/opt/x|y&z/bin/holdfast", 1); string(service) != want {
		t.Errorf("the service is\n%s", service)
	}
	socket, err := os.ReadFile(filepath.Join(units, "holdfast.socket"))
	if err != nil || string(socket) != Socket {
		t.Errorf("the socket is\n%s (%v)", socket, err)
	}
}

// analyze runs systemd-analyze, which needs no systemd that runs.
func analyze(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if err != nil || args[0] == "verify" && len(out) > 0 {
		t.Errorf("systemd-analyze %s: %v (`make deps` installs it)\n%s", strings.Join(args, " "), err, out)
	}
}

func TestSystemdUnderstandsTheUnits(t *testing.T) {
	dir := t.TempDir()
	install(t, dir, "/usr")
	units := filepath.Join(dir, "usr/lib/systemd/system")
	service := filepath.Join(units, "holdfast.service")
	// It wants to find what is started.
	there := strings.Replace(Service, "/usr/bin/holdfast", "/bin/true", 1)
	if err := os.WriteFile(service, []byte(there), 0o644); err != nil {
		t.Fatal(err)
	}
	analyze(t, "verify", "--man=no", service, filepath.Join(units, "holdfast.socket"))
	// From 0 to 100, where a service without any hardening has 96. Root, these
	// capabilities, and the host's network and processes are what the rest is.
	analyze(t, "security", "--offline=true", "--no-pager", "--threshold=33", service)
}
