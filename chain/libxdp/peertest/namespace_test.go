package peertest

import (
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Pins are named by an interface's index, and indexes repeat across network
// namespaces. Both ends of the veth pair have the same one here, as the first
// interface of a container has that of its host.
func TestNamespacesThatShareOneBPFFS(t *testing.T) {
	needChains(t)
	for name, l := range loaders(t) {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			if s.NearIndex != s.FarIndex {
				t.Fatalf("the interfaces have the indexes %d and %d, want the same", s.NearIndex, s.FarIndex)
			}
			maker := loaderTool{name, l}
			if err := maker.load(t, s, batch{2, 50, onPass, ""}); err != nil {
				t.Fatal(err)
			}
			whole := s.chain(t)

			// Holdfast looks where the dispatcher is attached before it removes
			// its pins.
			chains, _ := library{}.at(t, s)
			far, err := xdp.OpenNamespace(s.Far.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			cleaned, err := chains.Clean(t.Context(), far, 0)
			if err != nil {
				t.Fatal(err)
			}
			if len(cleaned) != 1 || cleaned[0].Removed || !strings.Contains(cleaned[0].Reason, s.NearName) {
				t.Errorf("Holdfast cleans another namespace's pins: %+v", cleaned)
			}
			untouched(t, s, whole)

			// libxdp does not, and the members are gone with their pins.
			if ended := s.Far.Run(t, l.Command(s.bpffs, "clean")); ended.Code != 0 {
				t.Fatalf("clean: exit code %d: %s", ended.Code, ended.Stderr)
			}
			if left := s.list(t, "xdp"); len(left) != 0 {
				t.Errorf("libxdp no longer removes another namespace's pins: %v", left)
			}
			if got := s.attached(t); got != whole.dispatcher {
				t.Errorf("program %d is attached, want dispatcher %d", got, whole.dispatcher)
			}

			// Both see a dispatcher without members, and can take it away.
			got, err := maker.members(t, s)
			if err != nil || len(got) != 0 {
				t.Errorf("xdp-loader reads members without pins: %v, %v", got, err)
			}
			_, hook := library{}.at(t, s)
			c, err := chains.Read(hook)
			if err != nil {
				t.Fatal(err)
			}
			if c.Kind != libxdp.Dispatcher || len(c.Members) != 0 || !strings.Contains(c.Problem, "pins are missing") {
				t.Errorf("Holdfast reads %+v", c)
			}
			if err := maker.load(t, s, batch{1, 50, onPass, ""}); err == nil {
				t.Error("xdp-loader adds to a chain without pins")
			}
			if err := (library{}).removeAll(t, s); err != nil {
				t.Fatal(err)
			}
			s.chain(t)
		})
	}
}
