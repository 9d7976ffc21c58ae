package peertest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
)

// Priorities tell the members apart: the one that was there, the one that
// is added by who is killed, and the one that is added afterwards.
const (
	wasThere = 10
	isAdded  = 20
	comes    = 30
)

// survivor is whose version of xdp-loader takes part. The newest that makes
// and changes chains of version 2.
const survivor = "1.5"

// lasting counts the calls whose effect outlives the process.
func lasting(p crash.Point) bool {
	switch p.Call {
	case "bpf":
		return p.Op == "BPF_OBJ_PIN"
	case "sendto":
		return p.Op == "RTM_SETLINK"
	case "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir":
		return true
	}
	return false
}

func TestXDPLoaderGoesOnWhereHoldfastWasKilled(t *testing.T) {
	needChains(t)
	peer := loaderTool{"libxdp " + survivor, kerneltest.OpenPeer(t, survivor)}
	var s *site
	crash.Sweep{
		BeforeOnly: true, Sample: kerneltest.OneOf(3),
		Setup: func(t *testing.T) crash.Command {
			s = newSite(t)
			if err := peer.load(t, s, batch{1, wasThere, onPass, ""}); err != nil {
				t.Fatal(err)
			}
			return crash.Command{
				Path:   "/proc/self/exe",
				Args:   []string{s.bpffs, s.Near.Path(), s.NearName, fmt.Sprint(isAdded)},
				Env:    append(os.Environ(), kerneltest.CommandEnv("add")),
				Counts: lasting,
			}
		},
		Check: func(t *testing.T, run crash.Run) {
			if err := peer.load(t, s, batch{1, comes, onPass, ""}); err != nil {
				t.Fatalf("xdp-loader adds nothing: %v", err)
			}
			if ended := s.Near.Run(t, peer.Command(s.bpffs, "clean", s.NearName)); ended.Code != 0 {
				t.Fatalf("xdp-loader does not clean: %s", ended.Stderr)
			}
			s.oldOrNew(t, !run.Reached)
			if err := peer.removeAll(t, s); err != nil {
				t.Fatal(err)
			}
		},
	}.Run(t)
}

func TestHoldfastGoesOnWhereXDPLoaderWasKilled(t *testing.T) {
	needChains(t)
	peer := kerneltest.OpenPeer(t, survivor)
	var s *site
	crash.Sweep{
		BeforeOnly: true, Sample: kerneltest.OneOf(3),
		Setup: func(t *testing.T) crash.Command {
			s = newSite(t)
			if err := (library{}).load(t, s, batch{1, wasThere, onPass, ""}); err != nil {
				t.Fatal(err)
			}
			enter(t, s.Near)
			cmd := peer.Command(s.bpffs, "load", s.NearName, kerneltest.ObjectFile(t, "filter"), "-P", fmt.Sprint(isAdded))
			return crash.Command{Path: cmd.Path, Args: cmd.Args[1:], Env: cmd.Env, Counts: lasting}
		},
		Check: func(t *testing.T, run crash.Run) {
			if err := (library{}).load(t, s, batch{1, comes, onPass, ""}); err != nil {
				t.Fatalf("Holdfast adds nothing: %v", err)
			}
			// With one like this it tries, under the lock, what the kernel can.
			for _, name := range s.leftovers(t) {
				if !strings.HasPrefix(name, "prog-test-link-") {
					continue
				}
				if err := os.Remove(filepath.Join(s.bpffs, "xdp", name)); err != nil {
					t.Fatal(err)
				}
			}
			s.oldOrNew(t, !run.Reached)
			if err := (library{}).removeAll(t, s); err != nil {
				t.Fatal(err)
			}
		},
	}.Run(t)
}

// oldOrNew checks that nothing is at the hook and in the bpffs but the old or
// the new chain, or the new one if it was done, and what came afterwards.
func (s *site) oldOrNew(t *testing.T, done bool) {
	t.Helper()
	var got []int
	for _, m := range s.chain(t).members {
		got = append(got, m.priority)
	}
	if !slices.Equal(got, []int{wasThere, isAdded, comes}) && (done || !slices.Equal(got, []int{wasThere, comes})) {
		t.Errorf("members %d are there", got)
	}
}

// enter has what the test starts start in the namespace, until the test ends.
func enter(t *testing.T, n *kerneltest.NetNS) {
	t.Helper()
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Where it can't be brought back the thread ends with the test.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	})
	if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}
