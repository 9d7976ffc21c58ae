package libxdptest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

func TestTmpTiming(t *testing.T) {
	b := newBench(t)
	b.needFreplace()
	for i := range 9 {
		m := b.member(fmt.Sprintf("m%d", i))
		start := time.Now()
		if _, err := b.chains.Add(context.Background(), b.hook, m); err != nil {
			t.Fatal(err)
		}
		t.Logf("add %d: %v", i, time.Since(start))
		start = time.Now()
		b.read()
		t.Logf("read %d: %v", i, time.Since(start))
		start = time.Now()
		kernel.AwaitGracePeriod()
		t.Logf("grace: %v", time.Since(start))
	}
}
