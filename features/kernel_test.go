package features_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	probe "github.com/cilium/ebpf/features"
	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"golang.org/x/sys/unix"
)

var kernelNames = []string{
	"bpf", "jit", "btf", "bpffs", "netns-cookie", "driver-flags", "netlink", "netlink-expected",
	"link", "link-update", "native", "generic", "frags", "frags-attach", "device-bound", "freplace",
}

func names(found []features.Feature) []string {
	var names []string
	for _, f := range found {
		names = append(names, f.Name)
	}
	return names
}

func kernelFeatures(t testing.TB) []features.Feature {
	t.Helper()
	found, err := features.Kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// atLeast tells whether the running kernel is of that version or later.
func atLeast(t testing.TB, version string) bool {
	t.Helper()
	parse := func(s string) (v [2]int) {
		if n, _ := fmt.Sscanf(s, "%d.%d", &v[0], &v[1]); n != 2 {
			t.Fatalf("%q is no version", s)
		}
		return v
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	running, wanted := parse(unix.ByteSliceToString(uts.Release[:])), parse(version)
	return slices.Compare(running[:], wanted[:]) >= 0
}

func answer(yes bool) features.Answer {
	if yes {
		return features.Yes
	}
	return features.No
}

func TestAKernelHasWhatItsVersionPromises(t *testing.T) {
	kerneltest.NoLeaks(t)
	found := kernelFeatures(t)
	if diff := cmp.Diff(kernelNames, names(found)); diff != "" {
		t.Fatalf("names and order are fixed (-want +got):\n%s", diff)
	}
	since := map[string]string{
		"netns-cookie": "5.14", "driver-flags": "6.3",
		"frags": "5.18", "frags-attach": "5.18", "device-bound": "6.3",
	}
	for _, f := range found {
		t.Logf("%-18s %-8s %-10s %s", f.Name, f.Supported, f.How, f.Reason)
		want := answer(since[f.Name] == "" || atLeast(t, since[f.Name]))
		if f.Name == features.Freplace {
			want = answer(haveExtensions(t))
		}
		if f.Supported != want {
			t.Errorf("%s: %s (%s), want %s", f.Name, f.Supported, f.Reason, want)
		}
		if f.About == "" {
			t.Errorf("%s says nothing of itself", f.Name)
		}
		if f.Supported == features.No && f.Reason == "" {
			t.Errorf("%s is not there and does not say why", f.Name)
		}
		if f.Supported == features.Yes && f.How != features.Tried {
			t.Errorf("%s is there and was %s", f.Name, f.How)
		}
	}
}

// haveExtensions asks somebody else: not every kernel that knows extensions
// allows them.
func haveExtensions(t testing.TB) bool {
	t.Helper()
	err := probe.HaveProgramType(ebpf.Extension)
	if err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EPERM) {
		t.Fatalf("extensions: %v", err)
	}
	return err == nil
}

func TestTryingTheKernelLeavesNothingBehind(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	// Whatever the runtime and the libraries open once is open after this.
	kernelFeatures(t)
	before := surroundings(t, v.Near)
	for range 3 {
		kernelFeatures(t)
	}
	if diff := cmp.Diff(before, surroundings(t, v.Near)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// world is what a probe could change.
type world struct {
	Own, Other  []rtnl.Device
	Descriptors []string
	Mounts      string
	// Namespaces are those of the threads.
	Namespaces []string
}

func surroundings(t testing.TB, other *kerneltest.NetNS) world {
	t.Helper()
	var w world
	own, err := rtnl.Dial(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if w.Own, err = own.Devices(); err != nil {
		t.Fatal(err)
	}
	if w.Other, err = other.Conn.Devices(); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	w.Mounts = string(mounts)
	w.Descriptors = links(t, "/proc/self/fd/*")
	// Sockets have numbers of their own; how many there are is what counts.
	for i, d := range w.Descriptors {
		kind, _, _ := strings.Cut(d, ":")
		w.Descriptors[i] = kind
	}
	w.Namespaces = slices.Compact(links(t, "/proc/self/task/*/ns/net"))
	return w
}

// links are where the symbolic links lead to, sorted.
func links(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, path := range paths {
		if target, err := os.Readlink(path); err == nil { // else closed or ended meanwhile
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// userNamespace makes a process root of a user and a network namespace.
func userNamespace() syscall.SysProcAttr {
	root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	return syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: root, GidMappings: root,
	}
}

func TestARefusalIsANoOnlyToWhoIsPermittedEverything(t *testing.T) {
	tests := []struct {
		name string
		attr syscall.SysProcAttr
		want features.Answer
	}{
		{"root", syscall.SysProcAttr{}, features.No},
		{"another user", syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}}, features.Unknown},
		{"root of a user namespace", userNamespace(), features.Unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := kerneltest.Command("judge-eperm")
			tt.attr.Pdeathsig = syscall.SIGKILL
			cmd.SysProcAttr = &tt.attr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if got := features.Answer(out); got != tt.want {
				t.Errorf("EPERM is judged as %s, want %s", got, tt.want)
			}
		})
	}
}

func TestWhatIsNotPermittedIsUnknown(t *testing.T) {
	kerneltest.NoLeaks(t)
	tests := []struct {
		name string
		attr syscall.SysProcAttr
		// these need no right
		known []string
	}{
		{
			name:  "another user",
			attr:  syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}},
			known: []string{features.BTF, features.NetnsCookie, features.DriverFlags},
		},
		{
			name: "another user who may load and attach programs",
			attr: syscall.SysProcAttr{
				Credential:  &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true},
				AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN},
			},
			known: []string{
				features.BPF, features.JIT, features.BTF, features.NetnsCookie, features.DriverFlags, features.Frags,
			},
		},
		{
			name:  "root of a user namespace, who has every capability there",
			attr:  userNamespace(),
			known: []string{features.BTF, features.NetnsCookie, features.DriverFlags},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := kerneltest.Command("kernel")
			tt.attr.Pdeathsig = syscall.SIGKILL
			cmd.SysProcAttr = &tt.attr
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var found []features.Feature
			if err := json.Unmarshal(out, &found); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(kernelNames, names(found)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			for _, f := range found {
				t.Logf("%-18s %-8s %-10s %s", f.Name, f.Supported, f.How, f.Reason)
				known := slices.Contains(tt.known, f.Name)
				if f.Name == features.FragsAttach && !atLeast(t, "5.18") {
					// It needs frags, which are known to be missing.
					known = slices.Contains(tt.known, features.Frags)
				}
				switch {
				case known && f.Supported == features.Unknown:
					t.Errorf("%s is unknown: %s", f.Name, f.Reason)
				case !known && f.Supported != features.Unknown:
					t.Errorf("%s: %s (%s), want unknown", f.Name, f.Supported, f.Reason)
				case !known && f.Reason == "":
					t.Errorf("%s is unknown and does not say why", f.Name)
				}
			}
			if f := features.Find(found, features.BPF); f.Supported == features.Unknown && !strings.Contains(f.Reason, "CAP_BPF") {
				t.Errorf("the reason does not say what is missing: %s", f.Reason)
			}
		})
	}
}

func TestAContextEndsTheTrying(t *testing.T) {
	kerneltest.NoLeaks(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := features.Kernel(ctx); !errors.Is(err, context.Canceled) || found != nil {
		t.Errorf("got %v, %v", found, err)
	}
}
