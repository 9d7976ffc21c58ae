package fusedtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// script is that of bpf/verdict.c: what each member returns, and which of them
// the packet met, in order.
type script struct {
	Returns [32]uint32
	Met     uint32
	Order   [32]uint32
}

// meaning is what a chain of members with these masks does: what it returns, and
// which members the packet meets.
func meaning(masks []chain.Actions, returns []uint32) (result uint32, met []uint32) {
	for i, mask := range masks {
		met = append(met, uint32(i))
		if returns[i] > redirect || !mask.Has(chain.Action(returns[i])) {
			return returns[i], met
		}
	}
	return pass, met
}

// Each chain is loaded once and run with many sets of return values, of which
// some are no actions, and some that are if only their lower bits were looked at.
func TestRandomChainsDoWhatChainsMean(t *testing.T) {
	kerneltest.NoLeaks(t)
	const chains, runs = 420, 10
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	oddities := []uint32{5, 31, 32, 34, 255, 256, 258, 1 << 31, 1<<31 | 2, 1<<32 - 1}

	scripts := scriptMap(t)
	// Each in two forms: one is made a part of the main function, one called.
	var verdicts [8][2]fused.Member
	for i := range verdicts {
		m := fused.Member{Name: fmt.Sprint(i), Program: verdict(t, scripts, i)}
		verdicts[i] = [2]fused.Member{m, detour(t, m)}
	}
	lengths, proceeded, odd := map[int]int{}, 0, 0
	for c := range chains {
		n := 1 + random.IntN(len(verdicts))
		masks := make([]chain.Actions, n)
		members := make([]fused.Member, n)
		for i := range members {
			masks[i] = chain.Actions(random.Uint32N(32))
			if random.IntN(2) == 0 {
				masks[i] = masks[i].With(chain.Pass)
			}
			members[i] = verdicts[i][random.IntN(2)]
			members[i].ProceedOn = masks[i]
			members[i].Place = 5 + 7*i // of any
		}
		// Every other chain counts.
		var p *ebpf.Program
		var counts *ebpf.Map
		var counted stats.All
		if c%2 == 0 {
			p = load(t, members...)
		} else {
			p, counts = loadCounting(t, members...)
		}
		for range runs {
			var s script
			for i := range masks {
				switch s.Returns[i] = random.Uint32N(redirect + 1); random.IntN(10) {
				case 0:
					s.Returns[i] = oddities[random.IntN(len(oddities))]
				case 1, 2, 3, 4, 5:
					s.Returns[i] = pass
				}
			}
			want, met := meaning(masks, s.Returns[:n])
			if err := scripts.Put(uint32(0), &s); err != nil {
				t.Fatal(err)
			}
			got := run(t, p)
			if err := scripts.Lookup(uint32(0), &s); err != nil {
				t.Fatal(err)
			}
			if order := s.Order[:s.Met]; got != want || !slices.Equal(order, met) {
				t.Fatalf("members with the masks %q that return %d: the chain returned %d and met %d, want %d and %d",
					masks, s.Returns[:n], got, order, want, met)
			}
			counted.Packets++
			for _, m := range met {
				countOne(&counted.Members[members[m].Place].Verdicts, s.Returns[m])
			}
			lengths[len(met)]++
			if want > redirect {
				odd++
			}
			if len(met) == n {
				proceeded++
			}
		}
		p.Close()
		if counts == nil {
			continue
		}
		got, err := stats.Read(counts)
		if err != nil {
			t.Fatal(err)
		}
		counts.Close()
		for i := range got.Members {
			m := &got.Members[i]
			if (m.Timed == 0) != (m.Time == 0) || m.Timed > m.Verdicts.Sum() {
				t.Fatalf("of %d runs %d were timed, and took %s", m.Verdicts.Sum(), m.Timed, m.Time)
			}
			m.Timed, m.Time = 0, 0
		}
		if got != counted {
			t.Fatalf("counted %+v, want %+v", got, counted)
		}
	}
	// What is random has to have been of every kind.
	if len(lengths) < 7 || proceeded < 100 || odd < 100 {
		t.Errorf("packets met so many members %v; %d met all, %d ended with no action", lengths, proceeded, odd)
	}
}

func countOne(v *stats.Verdicts, returned uint32) {
	for i, n := range []*uint64{&v.Aborted, &v.Drop, &v.Pass, &v.TX, &v.Redirect} {
		if returned == uint32(i) {
			*n++
			return
		}
	}
	v.Other++
}

func scriptMap(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4 * (32 + 1 + 32), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func verdict(t *testing.T, scripts *ebpf.Map, number int) *object.Prepared {
	t.Helper()
	return prepare(t, read(t, "verdict", fmt.Sprintf("number=%d", number)), object.LoadOptions{
		MapReplacements: map[string]*ebpf.Map{"scripts": scripts},
	})
}
