package kerneltest

import (
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/testbed"
)

// Flood is a bounded stream of UDP packets from Far to Near of a Veth, and the
// socket at Near that counts those which no program dropped.
type Flood = testbed.Flood

// FloodOptions bound a flood.
type FloodOptions = testbed.FloodOptions

// StartFlood starts sending. The flood ends with the test at the latest.
func StartFlood(t testing.TB, v *Veth, o FloodOptions) *Flood {
	t.Helper()
	f, err := testbed.StartFlood(v.Far.NS, v.Near.NS, v.NearAddr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Stop() })
	return f
}
