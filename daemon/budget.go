package daemon

import (
	"context"
	"sync"
)

// budget bounds how much of something is taken at once.
type budget struct {
	mutex sync.Mutex
	left  int64
	// given is closed when something is given back, and is another channel then.
	given chan struct{}
}

func newBudget(n int64) *budget { return &budget{left: n, given: make(chan struct{})} }

// take waits until there is so much. Who takes twice without giving back in between may
// wait for itself. The error is the context's.
func (b *budget) take(ctx context.Context, n int64) error {
	for {
		b.mutex.Lock()
		given, enough := b.given, n <= b.left
		if enough {
			b.left -= n
		}
		b.mutex.Unlock()
		if enough {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-given:
		}
	}
}

// give gives back what was taken.
func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.left += n
	close(b.given)
	b.given = make(chan struct{})
}
