// Package smoke checks the test machines themselves: that a guest is what
// the kernel tests take for granted, on each kernel.
package smoke

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

func TestTheKernelIsTheOneThatTheRunnerNames(t *testing.T) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	switch name := os.Getenv("HOLDFAST_TEST_KERNEL"); name {
	case "", "host":
		t.Logf("the machine's own kernel, %s", release)
	case "newest":
		// At least what the newest named entry has.
		if !newer(release, "6.12.") {
			t.Errorf("the newest kernel is %s", release)
		}
	default:
		if !strings.HasPrefix(release, name+".") {
			t.Errorf("kernel %s is %s", name, release)
		}
	}
}

// newer compares the major version, then the minor one.
func newer(release, than string) bool {
	part := func(s string) (major, minor int) {
		fields := strings.SplitN(s, ".", 3)
		for i, v := range []*int{&major, &minor} {
			for _, c := range fields[i] {
				if c < '0' || c > '9' {
					break
				}
				*v = *v*10 + int(c-'0')
			}
		}
		return major, minor
	}
	a, b := part(release)
	c, d := part(than)
	return a > c || a == c && b > d
}

func TestDevicesThatTestsMakeCanBeMade(t *testing.T) {
	ns := kerneltest.NewNetNS(t)
	made := func(kind string, err error) {
		t.Run(kind, func(t *testing.T) {
			if errors.Is(err, unix.EOPNOTSUPP) {
				t.Skipf("the kernel has no %s: %v", kind, err)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	made("veth", ns.Conn.AddVeth("near", "far", ns.FD()))
	for _, kind := range []string{"bridge", "bond", "dummy", "ifb"} {
		made(kind, ns.Conn.Add(kind, "a-"+kind))
	}
	made("vxlan", ns.Conn.AddVXLAN("a-vxlan", 7))
	made("macvlan", ns.Conn.AddOver("macvlan", "a-macvlan", ns.Device(t, "near").Index))
	_, err := os.Stat("/dev/net/tun")
	made("tun", err)
}

func TestAProgramLoadsAndIsPinned(t *testing.T) {
	dir := kerneltest.BPFFS(t)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		t.Fatalf("%s has file system type %#x, not bpffs", dir, fs.Type)
	}
	program := kerneltest.Pass(t, "smoke", nil)
	pin := filepath.Join(dir, "smoke")
	if err := program.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pin); err != nil {
		t.Error(err)
	}
}

func TestTestdataIsWhereItIsInTheTree(t *testing.T) {
	content, err := os.ReadFile("testdata/here.txt")
	if err != nil {
		t.Fatal(err)
	}
	if string(content) != "here\n" {
		t.Errorf("%q", content)
	}
}

// What guest.files names is in the guest at the same path, programs with
// their shared libraries.
func TestFilesOfTheMachineAreThere(t *testing.T) {
	if info, err := os.Stat("/etc/debian_version"); err != nil || info.Size() == 0 {
		t.Errorf("/etc/debian_version: %v, %v", info, err)
	}
	out, err := exec.Command("ip", "-Version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "ip utility") {
		t.Errorf("ip -Version: %v\n%s", err, out)
	}
}
