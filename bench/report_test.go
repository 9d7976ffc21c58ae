package main

import "testing"

func TestAVerdictNeedsTheWholeInterval(t *testing.T) {
	for _, c := range []struct {
		e    estimate
		want verdict
	}{
		{estimate{1.03, 1.01, 1.07}, reached},
		{estimate{1.16, 0.82, 1.58}, undecided},
		{estimate{1.05, 0.90, 1.20}, undecided},
		{estimate{1.36, 1.32, 1.39}, notReached},
	} {
		if got := judge(c.e, 1.1); got != c.want {
			t.Errorf("%v: %s, want %s", c.e, got, c.want)
		}
	}
}

func TestWhatIsSurelyAboveTheLimitWeighsMoreThanNoise(t *testing.T) {
	noisy, sure, fine := estimate{2, 0.5, 9}, estimate{1.3, 1.2, 1.4}, estimate{1, 1, 1}
	if i := gravest([]estimate{fine, noisy, sure}, 1.1); i != 2 {
		t.Errorf("the verdict hangs on estimate %d", i)
	}
	if i := gravest([]estimate{fine, noisy}, 1.1); i != 1 {
		t.Errorf("without a sure one it hangs on estimate %d", i)
	}
}
