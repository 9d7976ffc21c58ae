package daemon

import (
	"context"
	"errors"
	"testing"
)

func TestWhoTakesMoreThanThereIsWaitsUntilItIsGivenBack(t *testing.T) {
	b := newBudget(10)
	if err := b.take(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.take(ended, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("took more than there is: %v", err)
	}
	if err := b.take(ended, 3); err != nil {
		t.Errorf("what there is: %v", err)
	}
	taken := make(chan error)
	for range 2 {
		go func() { taken <- b.take(t.Context(), 5) }()
	}
	b.give(3)
	b.give(0)
	b.give(7)
	for range 2 {
		if err := <-taken; err != nil {
			t.Error(err)
		}
	}
	if err := b.take(ended, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("took more than there is: %v", err)
	}
}
