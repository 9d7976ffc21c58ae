package peertest

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// A chain takes packets of several buffers if all of its members do, which each
// tool finds out from what the others wrote about them.
func TestFragsFollowTheMembersWhoeverChangesThem(t *testing.T) {
	needChains(t)
	if !have(t, features.Frags) {
		t.Skip("programs take no packets of several buffers")
	}
	for name, l := range loaders(t) {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			holdfast, peer := library{}, loaderTool{name, l}
			done := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			done(peer.load(t, s, batch{1, 10, onPass, ""}))
			one := s.checkFrags(t, false, false)
			done(holdfast.load(t, s, batch{1, 20, onPass, "frags"}))
			s.checkFrags(t, false, false, true)
			done(peer.remove(t, s, one.members[0].id))
			s.checkFrags(t, true, true)

			// xdp-loader does not know the section xdp.frags.
			done(peer.load(t, s, batch{1, 30, onPass, "frags"}))
			two := s.checkFrags(t, false, true, false)
			done(holdfast.remove(t, s, two.members[1].id))
			s.checkFrags(t, true, true)
			done(peer.removeAll(t, s))
		})
	}
}

// checkFrags checks what the dispatcher's configuration says of frags: of the
// chain, and of each member.
func (s *site) checkFrags(t *testing.T, whole bool, each ...bool) attachedChain {
	t.Helper()
	const hasFrags = 0x20
	c := s.chain(t)
	conf := s.configuration(t, c.dispatcher)
	if got := conf[3] == 1; got != whole {
		t.Errorf("the chain takes packets of several buffers: %t, want %t", got, whole)
	}
	var got []bool
	for slot := range c.members {
		got = append(got, binary.NativeEndian.Uint32(conf[84+4*slot:])&hasFrags != 0)
	}
	if !slices.Equal(got, each) {
		t.Errorf("the members take packets of several buffers: %t, want %t", got, each)
	}
	return c
}
