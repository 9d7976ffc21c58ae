package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"
)

// contender does the same job as others do in another way. A turn leaves
// everything as it was before.
type contender struct {
	name string
	turn func(*clock) error
}

// clock measures the steps of a turn.
type clock struct {
	steps map[string]*step
	order []string
}

type step struct {
	took       time.Duration
	operations int
}

// time measures f, which makes that many operations. A step that is measured
// several times in a turn counts as one sample, their mean.
func (c *clock) time(name string, operations int, f func() error) error {
	start := time.Now()
	err := f()
	c.add(name, operations, time.Since(start))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// add counts what was measured otherwise.
func (c *clock) add(name string, operations int, took time.Duration) {
	s := c.steps[name]
	if s == nil {
		s = &step{}
		c.steps[name] = s
		c.order = append(c.order, name)
	}
	s.took += took
	s.operations += operations
}

// step is time for later.
func (c *clock) step(name string, operations int, f func() error) func() error {
	return func() error { return c.time(name, operations, f) }
}

// outcome holds the samples of a race: nanoseconds for one operation, by step
// and contender, one a round.
type outcome struct {
	Steps   []string
	Samples map[string]map[string][]float64
	Rounds  int
}

// race gives every contender a turn in every round, in an order drawn anew each
// time, until there are enough rounds or time is up; there are three at least,
// if that many are wanted. A first round is not counted, unless one is all.
//
// The garbage collector runs before every turn, and as it likes during one: it
// is part of what a library in Go costs, and whatever a turn leaves to it is its
// own.
func race(rounds int, limit time.Duration, contenders ...contender) (*outcome, error) {
	atLeast, first := min(rounds, 3), -1
	if rounds == 1 {
		first = 0
	}
	o := &outcome{Samples: map[string]map[string][]float64{}}
	start := time.Now()
	for round := first; round < rounds && (round < atLeast || time.Since(start) < limit); round++ {
		for _, i := range rand.Perm(len(contenders)) {
			c := contenders[i]
			runtime.GC()
			k := &clock{steps: map[string]*step{}}
			if err := c.turn(k); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if round >= 0 {
				o.add(c.name, k)
			}
		}
		o.Rounds = round + 1
	}
	return o, nil
}

func (o *outcome) add(contender string, k *clock) {
	for _, name := range k.order {
		if o.Samples[name] == nil {
			o.Samples[name] = map[string][]float64{}
			o.Steps = append(o.Steps, name)
		}
		s := k.steps[name]
		o.Samples[name][contender] = append(o.Samples[name][contender],
			float64(s.took.Nanoseconds())/float64(s.operations))
	}
}

// of is one contender's median time for the step, in nanoseconds.
func (o *outcome) of(step, contender string) estimate {
	return estimated(o.Samples[step][contender])
}

// ratio compares two contenders in the step.
func (o *outcome) ratio(step, over, under string) estimate {
	return ratios(o.Samples[step][over], o.Samples[step][under])
}
