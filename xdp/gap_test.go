package xdp_test

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const (
	gapReplaces = 60
	gapPackets  = 200_000
	gapPort     = 7777
)

func TestNoPacketMeetsNoProgramDuringAReplace(t *testing.T) {
	for _, mode := range []xdp.Mode{xdp.Native, xdp.Generic} {
		for _, kind := range []string{"link", "netlink"} {
			t.Run(mode.String()+" by "+kind, func(t *testing.T) {
				kerneltest.NoLeaks(t)
				v := kerneltest.NewVeth(t)
				g := loadGates(t, gapReplaces+1)
				h := open(t, v, mode)
				guard := guardByNetlink
				if kind == "link" {
					guard = guardByLink
				}
				replace := guard(t, h, g)
				f := kerneltest.StartFlood(t, v, kerneltest.FloodOptions{
					// It is stopped after that many packets, or, where a
					// replace takes its time, after the last one.
					Port: gapPort, Packets: 10 * gapPackets, Duration: time.Minute, Rate: 50_000,
				})
				// As many packets before and after each, and at least one.
				await := func(n int) {
					f.AwaitSent(uint64(n+1) * gapPackets / (gapReplaces + 2))
					if !kerneltest.Eventually(func() bool { return g.met(t, n) > 0 }) {
						t.Fatalf("program %d of %d meets no packet", n, len(g.versions))
					}
				}
				for n := range gapReplaces {
					await(n)
					replace(n, n+1)
				}
				await(gapReplaces)
				if !f.Running() {
					t.Error("the flood ended before the last replace")
				}
				f.AwaitSent(gapPackets)
				sent, unprotected := f.Stop()
				if unprotected != 0 {
					t.Errorf("%d of %d packets met no program", unprotected, sent)
				}
				if sent < gapPackets {
					t.Errorf("%d packets were sent, want %d or more", sent, gapPackets)
				}
				g.checkCount(t, v, sent)
				t.Logf("COUNT gap packets %d", sent)
			})
		}
	}
}

// gates are versions of a program that drops all packets of the flood and
// counts them, each in its own place of one map.
type gates struct {
	versions []*ebpf.Program
	hits     *ebpf.Map
}

func loadGates(t *testing.T, n int) *gates {
	t.Helper()
	spec, err := bpfprog.LoadGate()
	if err != nil {
		t.Fatal(err)
	}
	hits, err := ebpf.NewMap(spec.Maps["hits"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hits.Close() })
	g := &gates{hits: hits}
	for generation := range n {
		spec := spec.Copy()
		for name, value := range map[string]any{"port": uint16(gapPort), "generation": uint32(generation)} {
			if err := spec.Variables[name].Set(value); err != nil {
				t.Fatal(err)
			}
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{"hits": hits}})
		if err != nil {
			t.Fatal(err)
		}
		kerneltest.CloseLater(t, c)
		g.versions = append(g.versions, c.Programs["gate"])
	}
	return g
}

// guardByLink attaches the first gate and returns what replaces one by another.
func guardByLink(t *testing.T, h *xdp.Hook, g *gates) func(old, next int) {
	t.Helper()
	l := attachLink(t, h, g.versions[0])
	return func(old, next int) {
		t.Helper()
		if err := l.Replace(xdp.ReplaceOptions{Program: g.versions[next], Expect: xdp.Expect(g.versions[old])}); err != nil {
			t.Fatal(err)
		}
	}
}

func guardByNetlink(t *testing.T, h *xdp.Hook, g *gates) func(old, next int) {
	t.Helper()
	if err := h.Attach(g.versions[0], xdp.Empty); err != nil {
		t.Fatal(err)
	}
	return func(old, next int) {
		t.Helper()
		if err := h.Attach(g.versions[next], xdp.Expect(g.versions[old])); err != nil {
			t.Fatal(err)
		}
	}
}

// checkCount checks that the gates met every packet that was sent, except those
// that the sending interface itself says it lost because a queue was full.
func (g *gates) checkCount(t *testing.T, v *kerneltest.Veth, sent uint64) {
	t.Helper()
	var met, lost uint64
	if !kerneltest.Eventually(func() bool {
		met, lost = g.sum(t), v.Lost(t)
		return met+lost == sent
	}) {
		t.Errorf("%d packets were sent, the gates met %d, and %d were lost in queues", sent, met, lost)
	}
	if lost > 0 {
		t.Logf("%d packets were lost in queues", lost)
	}
}

// met is how many packets one gate met.
func (g *gates) met(t *testing.T, generation int) (hits uint64) {
	t.Helper()
	if err := g.hits.Lookup(uint32(generation), &hits); err != nil {
		t.Fatal(err)
	}
	return hits
}

// sum is how many packets all gates met.
func (g *gates) sum(t *testing.T) (met uint64) {
	t.Helper()
	for generation := range g.versions {
		met += g.met(t, generation)
	}
	return met
}
