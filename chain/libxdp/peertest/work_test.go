package peertest

import (
	"bytes"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// names is the order of a chain.
func names(members []member) (all []string) {
	for _, m := range members {
		all = append(all, strconv.Itoa(m.priority)+" "+m.name)
	}
	return all
}

// What only Holdfast does, it does to the chains of others, who read it and go
// on from there.
func TestHoldfastWorksOnTheChainsOfOthers(t *testing.T) {
	needChains(t)
	const long = "a_member_with_a_long_name"
	for name, l := range loaders(t) {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			peer := loaderTool{name, l}
			chains, hook := library{}.at(t, s)
			file := kerneltest.ObjectFile(t, "member")
			o, err := object.Read("member.o", bytes.NewReader(bpfprog.ELF("member")))
			if err != nil {
				t.Fatal(err)
			}
			program := func(name string) libxdp.Addition {
				return libxdp.Addition{Object: o, Load: object.LoadOptions{Program: object.Choice{Name: name}}}
			}
			load := func(function string) {
				t.Helper()
				if _, err := peer.run(t, s, "load", s.NearName, file, "-n", function); err != nil {
					t.Fatal(err)
				}
			}
			read := func(want ...string) []member {
				t.Helper()
				theirs, err := peer.members(t, s)
				if err != nil {
					t.Fatal(err)
				}
				ours, err := library{}.members(t, s)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, names(theirs)); diff != "" {
					t.Errorf("xdp-loader reads: -want +got:\n%s", diff)
				}
				if !slices.Equal(ours, theirs) {
					t.Errorf("Holdfast reads %v, and xdp-loader %v", ours, theirs)
				}
				return theirs
			}

			// Names that the kernel cuts off, and members that are alike: they
			// stay in the order that they came in.
			load(long)
			load("m1")
			if _, err := chains.Add(t.Context(), hook, program(long), program("m1")); err != nil {
				t.Fatal(err)
			}
			load("m1")
			alike := read("50 "+long, "50 "+long, "50 m1", "50 m1", "50 m1")
			if !slices.IsSortedFunc(alike[2:], func(a, b member) int { return int(a.id) - int(b.id) }) {
				t.Errorf("members that are alike are in the order %v", alike[2:])
			}

			priority := uint32(40)
			if _, err := chains.Set(t.Context(), hook, libxdp.Target{ID: alike[3].id}, libxdp.Settings{Priority: &priority}); err != nil {
				t.Fatal(err)
			}
			if got := read("40 m1", "50 "+long, "50 "+long, "50 m1", "50 m1"); got[0].id != alike[3].id {
				t.Errorf("another member was moved to the front: %v, want %v", got[0], alike[3])
			}
			if _, err := chains.Replace(t.Context(), hook, libxdp.Target{ID: alike[3].id}, program("m2")); err != nil {
				t.Fatal(err)
			}
			if _, err := chains.Remove(t.Context(), hook, libxdp.Target{ID: alike[0].id}, libxdp.Target{ID: alike[2].id}); err != nil {
				t.Fatal(err)
			}
			load("m0")
			read("40 m2", "50 "+long, "50 m0", "50 m1")
			if err := peer.removeAll(t, s); err != nil {
				t.Fatal(err)
			}
			s.chain(t)
		})
	}
}

// A program that was attached without a dispatcher becomes a member.
func TestHoldfastTakesAProgramOfXDPLoaderIntoAChain(t *testing.T) {
	needChains(t)
	for name, l := range loaders(t) {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			chains, hook := library{}.at(t, s)
			pass := kerneltest.ObjectFile(t, "pass")
			cmd := l.Command(s.bpffs, "load", s.NearName, pass)
			cmd.Env = append(cmd.Env, "LIBXDP_SKIP_DISPATCHER=1")
			if ended := s.Near.Run(t, cmd); ended.Code != 0 {
				t.Fatalf("load: exit code %d: %s", ended.Code, ended.Stderr)
			}
			o, err := object.Open(pass)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := chains.Add(t.Context(), hook, libxdp.Addition{Object: o, Adopt: true}); err != nil {
				t.Fatal(err)
			}
			if got := s.state(t); got != passOnly {
				t.Errorf("there is %s, want %s", got, passOnly)
			}
			if err := (library{}).removeAll(t, s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Programs that come with xdp-tools say in their objects where in a chain they
// want to run. Holdfast understands them as xdp-loader does.
func TestProgramsOfXDPToolsRunWhereTheyWantTo(t *testing.T) {
	needChains(t)
	var objects []string
	for _, pattern := range []string{"xdpfilt_dny_all.o", "xsk_def_xdp_prog*.o"} {
		found, err := filepath.Glob(filepath.Join("/usr/lib/*-linux-gnu/bpf", pattern))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, found...)
	}
	if len(objects) == 0 {
		t.Fatal("there are no objects of xdp-tools on this machine: scripts/deps installs them")
	}
	for _, path := range objects {
		t.Run(filepath.Base(path), func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			chains, hook := library{}.at(t, s)
			o, err := object.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			first := o.Programs()[0].Name // the one that xdp-loader takes
			if _, err := chains.Add(t.Context(), hook, libxdp.Addition{Object: o, Load: object.LoadOptions{Program: object.Choice{Name: first}}}); err != nil {
				t.Fatal(err)
			}
			ours := s.state(t)
			s.clear(t)
			peer := loaderTool{"libxdp 1.6", kerneltest.OpenPeer(t, "1.6")}
			if _, err := peer.run(t, s, "load", s.NearName, path); err != nil {
				t.Fatal(err)
			}
			if theirs := s.state(t); theirs != ours {
				t.Errorf("Holdfast makes %s, and xdp-loader %s", ours, theirs)
			}
			s.clear(t)
		})
	}
}
