package main

import (
	"math"
	"slices"
)

// median is the middle of the values, which it sorts.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	half := len(values) / 2
	if len(values)%2 == 1 {
		return values[half]
	}
	return (values[half-1] + values[half]) / 2
}

// estimate is a median and where the true one lies with 95 % confidence.
type estimate struct{ mid, low, high float64 }

// estimated takes the interval from the values themselves: how many of n lie
// below the true median is binomial, whatever their distribution, so the true
// median lies between the two values that are 0.98 √n ranks away from the
// middle. With fewer than six values no interval has that confidence, and it is
// that of all values.
func estimated(values []float64) estimate {
	sorted := slices.Clone(values)
	e := estimate{mid: median(sorted)}
	n := len(sorted)
	if n == 0 {
		return estimate{math.NaN(), math.NaN(), math.NaN()}
	}
	low := int(math.Floor(float64(n)/2-0.98*math.Sqrt(float64(n)))) - 1
	low = max(low, 0)
	e.low, e.high = sorted[low], sorted[n-1-low]
	return e
}

// ratios divides the two samples of every round. What slows a whole round down,
// such as a neighbor on the machine, slows both and cancels out.
func ratios(over, under []float64) estimate {
	quotients := make([]float64, min(len(over), len(under)))
	for i := range quotients {
		quotients[i] = over[i] / under[i]
	}
	return estimated(quotients)
}

// differences subtracts the two samples of every round.
func differences(from, what []float64) estimate {
	d := make([]float64, min(len(from), len(what)))
	for i := range d {
		d[i] = from[i] - what[i]
	}
	return estimated(d)
}
