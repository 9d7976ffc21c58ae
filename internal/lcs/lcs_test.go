package lcs

import (
	"testing"

	"pgregory.net/rapid"
)

func TestWhatIsCommonIsInBothAndNothingLongerIs(t *testing.T) {
	drawList := rapid.SliceOfN(rapid.IntRange(0, 3), 0, 8)
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawList.Draw(t, "a"), drawList.Draw(t, "b")
		got := Common(a, b)
		if !within(got, a) || !within(got, b) {
			t.Fatalf("%v is not in both", got)
		}
		longest := 0
		for bits := range 1 << len(a) {
			var some []int
			for i, v := range a {
				if bits&(1<<i) != 0 {
					some = append(some, v)
				}
			}
			if within(some, b) {
				longest = max(longest, len(some))
			}
		}
		if len(got) != longest {
			t.Fatalf("%v is not the longest, which has %d", got, longest)
		}
	})
}

// within tells whether the elements of some are in all, in this order.
func within(some, all []int) bool {
	for _, v := range all {
		if len(some) > 0 && some[0] == v {
			some = some[1:]
		}
	}
	return len(some) == 0
}
