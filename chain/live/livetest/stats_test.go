package livetest

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func newStats(t testing.TB) *ebpf.Map {
	t.Helper()
	m, err := stats.NewMap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func counted(t testing.TB, m *ebpf.Map) stats.All {
	t.Helper()
	all, err := stats.Read(m)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestADispatcherThatCountsPassesEveryPacket(t *testing.T) {
	kerneltest.NoLeaks(t)
	m := newStats(t)
	b := newBench(t, live.Options{Stats: m})
	var firsts []live.Slot
	for p := range live.Places {
		firsts = append(firsts, live.Slot(2*p))
	}
	b.commit(firsts...)
	for range 3 {
		b.want(pass)
	}
	if got, want := counted(t, m), (stats.All{Packets: 3}); got != want {
		t.Errorf("counted %+v of slots without members, want %+v", got, want)
	}
	if again, err := live.Open(b.ID()); err != nil {
		t.Error(err)
	} else {
		if again.StatsID() != b.StatsID() || b.StatsID() == 0 {
			t.Errorf("opened anew it counts in map %d, and in %d before", again.StatsID(), b.StatsID())
		}
		again.Close()
	}
	refused(t, b.SetCounter(2, 0), live.ErrEnabled)
	refused(t, b.SetCounter(1, stats.Places), xdp.ErrInvalid, "places 0 to 63")
}

func TestADispatcherThatCountsMeansWhatOthersDo(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	m := newStats(t)
	b := newBench(t, live.Options{Stats: m})
	places := []live.Slot{0, 13, 15, 16, 31, 32, 37, 48, 62}
	for _, s := range places {
		b.member(s)
	}
	for _, result := range results {
		tested := b.attach(20, b.load("walker", 20, result))
		for _, mask := range []chain.Actions{0, chain.DefaultProceedOn, 31, 31 &^ chain.DefaultProceedOn} {
			b.commit()
			b.await()
			if err := b.SetProceedOn(20, mask); err != nil {
				t.Fatal(err)
			}
			b.commit(append([]live.Slot{20}, places...)...)
			before := []int{0, 13, 15, 16, 20}
			if result <= 4 && mask.Has(chain.Action(result)) {
				b.want(pass, append(before, 31, 32, 37, 48, 62)...)
			} else {
				b.want(result, before...)
			}
		}
		tested.Close()
		b.commit()
		b.await()
	}
}

// Each member's counter is wherever it was told, and adds up to the packets that
// the member met.
func TestEachVerdictOfEachMemberIsCounted(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	m := newStats(t)
	b := newBench(t, live.Options{Stats: m})
	all := chain.Set(chain.AllActions()...)
	var slots []live.Slot
	for i := range uint32(6) {
		slot := live.Slot(9*i + 1)
		slots = append(slots, slot)
		b.returning(slot, i) // 5 is no action, and ends the chain
		if err := b.SetProceedOn(slot, all); err != nil {
			t.Fatal(err)
		}
		if err := b.SetCounter(slot, 63-int(i)); err != nil {
			t.Fatal(err)
		}
	}
	b.commit(slots...)
	const packets = 2 * stats.Sample
	for range packets {
		b.want(5, 1, 10, 19, 28, 37, 46)
	}
	got := counted(t, m)
	if got.Packets != packets {
		t.Errorf("counted %d packets of %d", got.Packets, packets)
	}
	for i, v := range []stats.Verdicts{{Aborted: packets}, {Drop: packets}, {Pass: packets}, {TX: packets}, {Redirect: packets}, {Other: packets}} {
		c := got.Members[63-i]
		if c.Verdicts != v {
			t.Errorf("member %d: counted %+v, want %+v", i, c.Verdicts, v)
		}
		// Each processor times the first of its packets, and one of so many then.
		if c.Timed < 2 || c.Time == 0 {
			t.Errorf("member %d: %d runs were timed, and took %s", i, c.Timed, c.Time)
		}
	}
	if slices.ContainsFunc(got.Members[:58], func(c stats.Counters) bool { return c != stats.Counters{} }) {
		t.Errorf("something is counted that is nobody's: %+v", got)
	}
}

// This is why a chain counts itself.
func TestTheKernelCountsRunsOfTheDispatcherOnly(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	member := b.load("walker", 0, pass)
	b.attach(0, member)
	b.commit(0)
	p, err := ebpf.NewProgramFromFD(func() int {
		fd, err := member.Dup()
		if err != nil {
			t.Fatal(err)
		}
		return int(fd)
	}())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b.want(pass, 0)
	runs := func(id uint32) xdp.Run {
		t.Helper()
		r, err := xdp.ReadRun(id)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	before := runs(b.ID())
	stop, err := xdp.CountRuns()
	if err != nil {
		t.Fatal(err)
	}
	const packets = 5
	for range packets {
		b.want(pass, 0)
	}
	stop.Close()
	after := runs(b.ID())
	if after.Count-before.Count != packets || after.Time <= before.Time {
		t.Errorf("the kernel counted %+v, and %+v before %d runs", after, before, packets)
	}
	_, err = xdp.ReadRun(1 << 31)
	refused(t, err, xdp.ErrNotFound, "not loaded")
	if r := runs(kerneltest.ProgramID(t, p)); r != (xdp.Run{}) {
		t.Errorf("the kernel counted %+v of an extension", r)
	}
}
