package arbiter

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// turns are whose turn it is in this process, by what for. Those who wait get theirs in
// the order that they came in: locks of files have no order, and a chain that others
// change again and again would be planned for in vain each time.
type turns struct {
	mutex sync.Mutex
	by    map[string]*turn
}

type turn struct {
	taken chan struct{} // has one element while somebody has it
	users int           // who has it or waits for it
}

// take waits for a turn, and returns what gives it up. The errors are ErrLockTimeout,
// and the cause of the context's end.
func (t *turns) take(ctx context.Context, what string, timeout time.Duration) (done func(), err error) {
	t.mutex.Lock()
	if t.by == nil {
		t.by = map[string]*turn{}
	}
	mine := t.by[what]
	if mine == nil {
		mine = &turn{taken: make(chan struct{}, 1)}
		t.by[what] = mine
	}
	mine.users++
	t.mutex.Unlock()

	leave := func() {
		t.mutex.Lock()
		defer t.mutex.Unlock()
		if mine.users--; mine.users == 0 {
			delete(t.by, what)
		}
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case mine.taken <- struct{}{}:
		return func() {
			<-mine.taken
			leave()
		}, nil
	case <-timer.C:
		err = ErrLockTimeout
	case <-ctx.Done():
		err = fmt.Errorf("wait for others: %w", context.Cause(ctx))
	}
	leave()
	return nil, err
}
