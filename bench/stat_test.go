package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestTheMedianIsTheMiddle(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{7}, 7},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestTheIntervalHoldsTheTrueMedianAsOftenAsItSays(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const experiments = 4000
	for _, n := range []int{10, 51, 300} {
		held := 0
		for range experiments {
			values := make([]float64, n)
			for i := range values {
				values[i] = random.ExpFloat64() // far from symmetric; its median is ln 2
			}
			e := estimated(values)
			if e.low <= 0.6931471805599453 && 0.6931471805599453 <= e.high {
				held++
			}
		}
		if share := float64(held) / experiments; share < 0.94 {
			t.Errorf("of %d values the interval held the median in %.1f %% of cases", n, 100*share)
		}
	}
}

func TestRatiosAreTakenRoundByRound(t *testing.T) {
	// A neighbor slows the second round down fivefold.
	e := ratios([]float64{2, 10, 2}, []float64{1, 5, 1})
	if e != (estimate{2, 2, 2}) {
		t.Errorf("got %v", e)
	}
}
