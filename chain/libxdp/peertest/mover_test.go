package peertest

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// Newer kernels let only functions that may change packet data be extended by
// programs that do, which those of the dispatchers of libxdp 1.3 and 1.5 may
// not. With such a member in it, a chain can be changed by Holdfast and libxdp
// 1.6, and taken away by all.
func TestAMemberThatChangesPackets(t *testing.T) {
	needChains(t)
	for name, l := range loaders(t) {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			peer := loaderTool{name, l}
			chains, hook := library{}.at(t, s)
			mover := func() {
				t.Helper()
				o, err := object.Read("member.o", bytes.NewReader(bpfprog.ELF("member")))
				if err != nil {
					t.Fatal(err)
				}
				a := libxdp.Addition{Object: o, Load: object.LoadOptions{Program: object.Choice{Name: "m_mover"}}}
				if _, err := chains.Add(t.Context(), hook, a); err != nil {
					t.Fatalf("Holdfast does not add it: %v", err)
				}
			}
			_, err := peer.run(t, s, "load", s.NearName, kerneltest.ObjectFile(t, "member"), "-n", "m_mover")
			var refused *exitError
			if errors.As(err, &refused) && refused.code != 234 {
				t.Fatal(err)
			}
			if want := changesAreGuarded(t) && name != "1.6"; (refused != nil) != want {
				t.Errorf("xdp-loader is refused such a member: %t, want %t", refused != nil, want)
			}
			s.clear(t)

			if err := peer.load(t, s, batch{1, 20, onPass, ""}); err != nil {
				t.Fatal(err)
			}
			mover()
			two := s.chain(t)
			s.send(t, attachedChain{members: two.members[:1]}, []uint64{packets}, 0)
			if got, err := peer.members(t, s); err != nil || len(got) != 2 {
				t.Errorf("xdp-loader reads %v, %v", got, err)
			}
			change := func(what string, before attachedChain, err error) (done bool) {
				t.Helper()
				switch {
				case refused == nil && err != nil:
					t.Fatalf("xdp-loader does not %s: %v", what, err)
				case refused != nil && (err == nil || !strings.Contains(err.Error(), "Failed to attach program m_mover to dispatcher")):
					t.Fatalf("xdp-loader is not refused to %s: %v", what, err)
				case refused != nil:
					untouched(t, s, before)
				}
				return refused == nil
			}
			if !change("take a member out", two, peer.remove(t, s, two.members[0].id)) {
				if err := (library{}).remove(t, s, two.members[0].id); err != nil {
					t.Errorf("Holdfast does not take a member out: %v", err)
				}
			}
			one := s.chain(t)
			change("add a member", one, peer.load(t, s, batch{1, 60, onPass, ""}))
			if err := peer.removeAll(t, s); err != nil {
				t.Errorf("xdp-loader does not take all away: %v", err)
			}
			s.chain(t)
		})
	}
}

// changesAreGuarded tells whether the kernel looks at what changes packet data,
// as Linux does from 6.12 on.
func changesAreGuarded(t *testing.T) bool {
	t.Helper()
	switch kernel := os.Getenv("HOLDFAST_TEST_KERNEL"); kernel {
	case "5.10", "6.1":
		return false
	case "6.12", "newest":
		return true
	default:
		t.Fatalf("what does kernel %q do? Add it here", kernel)
		return false
	}
}
