package libxdptest

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

const (
	gapCycles  = 10 // of three changes
	gapPackets = 60_000
)

// In a chain of five, a sixth is added before the last, the third is replaced,
// and the sixth removed, again and again under a flood. If a packet met a part of
// a chain, one that is always there would miss it, or the two that replace each
// other would have met it both or neither.
func TestNoPacketMeetsAPartOfAChain(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	ctx := context.Background()
	b.add(at(10, b.member("m1")), at(20, b.member("m2")), at(30, b.member("m3")), at(40, b.member("m4")), at(50, b.member("m5")))
	f := kerneltest.StartFlood(t, b.veth, kerneltest.FloodOptions{
		// It is stopped after that many packets, or, where a change takes its
		// time, after the last one.
		Port: port, Packets: 100 * gapPackets, Duration: time.Minute, Rate: 20_000,
	})
	there, next := "m3", "m8"
	await := func(change int) {
		t.Helper()
		f.AwaitSent(uint64(change+1) * gapPackets / (3*gapCycles + 2))
		before := b.met("m5").Packets
		if !kerneltest.Eventually(func() bool { return b.met("m5").Packets > before }) {
			t.Fatalf("after %d changes no packet comes through", change)
		}
	}
	for cycle := range gapCycles {
		await(3 * cycle)
		b.add(at(45, b.member("m9")))
		await(3*cycle + 1)
		if _, err := b.chains.Replace(ctx, b.hook, libxdp.Target{Name: there}, b.member(next)); err != nil {
			t.Fatal(err)
		}
		there, next = next, there
		await(3*cycle + 2)
		b.remove("m9")
	}
	if !f.Running() {
		t.Error("the flood ended before the last change")
	}
	f.AwaitSent(gapPackets)
	sent, received := f.Stop()

	var lost uint64
	for _, who := range [][]string{{"m1"}, {"m2"}, {"m3", "m8"}, {"m4"}, {"m5"}} {
		var met uint64
		if !kerneltest.Eventually(func() bool {
			met, lost = 0, b.veth.Lost(t)
			for _, name := range who {
				met += b.met(name).Packets
			}
			return met+lost == sent
		}) {
			t.Errorf("%d packets were sent, %d were lost in queues, and %v met %d", sent, lost, who, met)
		}
	}
	for _, name := range []string{"m3", "m8", "m9"} {
		if n := b.met(name).Packets; n == 0 || n >= sent {
			t.Errorf("%s met %d of %d packets: it did not come and go under the flood", name, n, sent)
		}
	}
	if received > sent {
		t.Errorf("%d packets were sent, and %d came through", sent, received)
	}
	t.Logf("COUNT gap packets %d", sent)
	t.Logf("%d packets were lost in queues", lost)
	b.remove("m1", "m2", there, "m4", "m5")
}
