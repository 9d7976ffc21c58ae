package arbiter

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestTurnsAreTakenOneAtATimeAndForEachThing(t *testing.T) {
	var all turns
	ctx := context.Background()
	first, err := all.take(ctx, "a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	other, err := all.take(ctx, "b", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	other()
	if _, err := all.take(ctx, "a", time.Millisecond); !errors.Is(err, ErrLockTimeout) {
		t.Errorf("a turn that somebody has: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := all.take(canceled, "a", time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	var waiting sync.WaitGroup
	n := 0
	for range 10 {
		waiting.Go(func() {
			done, err := all.take(ctx, "a", time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			n++ // which nobody else does at the moment
			done()
		})
	}
	first()
	waiting.Wait()
	if n != 10 || len(all.by) != 0 {
		t.Errorf("%d had a turn, and %d turns are left", n, len(all.by))
	}
}
