package kerneltest

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
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

// Lost is how many packets Far could not hand over to Near, because a queue was
// full.
func (v *Veth) Lost(t testing.TB) uint64 {
	t.Helper()
	var table []byte
	v.Far.In(t, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	for s := bufio.NewScanner(bytes.NewReader(table)); s.Scan(); {
		name, values, _ := strings.Cut(s.Text(), ":")
		if strings.TrimSpace(name) != v.FarName {
			continue
		}
		const transmitDropped = 8 + 3 // after eight for what is received: bytes, packets, errs, drop
		n, err := strconv.ParseUint(strings.Fields(values)[transmitDropped], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("%s is not in %s", v.FarName, table)
	return 0
}
