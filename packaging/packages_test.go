package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// build builds the packages for one architecture and returns their paths.
func build(t *testing.T, version string) (deb, rpm string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("../scripts/packages", version, dir)
	cmd.Env = append(os.Environ(), "ARCHS=amd64", "TMPDIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scripts/packages: %v\n%s", err, out)
	}
	return filepath.Join(dir, "holdfast_"+version+"_amd64.deb"), filepath.Join(dir, "holdfast-"+version+"-1.x86_64.rpm")
}

// say runs a tool that `make deps` installs, and returns what it said.
func say(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v (`make deps` installs it)\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

func TestThePackages(t *testing.T) {
	deb, rpm := build(t, "1.0")
	againDeb, againRPM := build(t, "1.0")
	t.Run("are the same bytes each time", func(t *testing.T) {
		same(t, deb, againDeb)
		same(t, rpm, againRPM)
	})
	t.Run("are in order for lintian", func(t *testing.T) {
		if out := say(t, exec.Command("lintian", "--fail-on", "warning", "--allow-root", deb)); out != "" {
			t.Error(out)
		}
	})
	t.Run("rpm installs, verifies, upgrades and removes", func(t *testing.T) {
		_, newer := build(t, "1.1")
		root := t.TempDir()
		run := func(args ...string) string {
			t.Helper()
			// Scripts would need a shell below root.
			cmd := exec.Command("rpm", append([]string{"--root", root}, args...)...)
			cmd.SysProcAttr = asRoot()
			return say(t, cmd)
		}
		run("--install", "--nodeps", "--noscripts", rpm)
		run("--verify", "--nodeps", "--noscripts", "holdfast")
		policy := filepath.Join(root, "etc/holdfast/policy.yaml")
		if err := os.WriteFile(policy, []byte("version: 1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		run("--upgrade", "--nodeps", "--noscripts", newer)
		if got := run("--query", "holdfast"); got != "holdfast-1.1-1.x86_64\n" {
			t.Errorf("installed is %s", got)
		}
		if got, err := os.ReadFile(policy); string(got) != "version: 1\n" {
			t.Errorf("the policy is %q now (%v)", got, err)
		}
		files := strings.Fields(run("--query", "--list", "holdfast"))
		run("--erase", "--noscripts", "holdfast")
		for _, file := range files {
			if _, err := os.Lstat(filepath.Join(root, file)); err == nil && file != "/etc/holdfast" {
				t.Errorf("%s is left", file)
			}
		}
		if _, err := os.Stat(policy + ".rpmsave"); err != nil {
			t.Error(err)
		}
	})
	t.Run("have scripts that a shell can read", func(t *testing.T) {
		scripts, err := filepath.Glob("scripts/*")
		if err != nil || len(scripts) != 6 {
			t.Fatalf("there are %v (%v)", scripts, err)
		}
		for _, script := range scripts {
			say(t, exec.Command("sh", "-n", script))
		}
	})
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s is different the second time", filepath.Base(a))
	}
}

// asRoot is root of a user namespace, for what may be done below a directory of the
// test's own.
func asRoot() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}
