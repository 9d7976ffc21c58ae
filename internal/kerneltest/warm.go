package kerneltest

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Warm attaches the programs to interfaces that nobody sends to, until the test
// ends, so that none of them enters or leaves XDP when the test attaches or
// detaches it: the kernel's XDP dispatcher waits for an RCU grace period then,
// ten milliseconds or more.
func Warm(t testing.TB, programs ...*ebpf.Program) {
	t.Helper()
	n := NewNetNS(t)
	for i := 0; i < len(programs); i += 2 {
		names := []string{fmt.Sprintf("warm%d", i), fmt.Sprintf("warm%d", i+1)}
		if err := n.Conn.AddVeth(names[0], names[1], -1); err != nil {
			t.Fatal(err)
		}
		for k, p := range programs[i:min(i+2, len(programs))] {
			if err := n.Conn.ReplaceXDP(n.Device(t, names[k]).Index, p.FD(), -1, unix.XDP_FLAGS_SKB_MODE); err != nil {
				t.Fatalf("attach a program to %s: %v", names[k], err)
			}
		}
	}
}

// FillDispatcher does the same for all programs that are attached after it: the
// kernel's XDP dispatcher has room for no more than 48, and those that come
// later cost nothing. It waits for as many grace periods itself. Call NoLeaks
// before it, which waits until they have left: the namespace with them ends a
// little after the test.
func FillDispatcher(t testing.TB) {
	t.Helper()
	programs := make([]*ebpf.Program, 48) // BPF_DISPATCHER_MAX
	for i := range programs {
		programs[i] = Pass(t, fmt.Sprintf("fill%d", i), nil)
	}
	Warm(t, programs...)
}
