package kerneltest

import (
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/vm"
)

// taken are how many of the kernels take each of so many points.
func taken(t *testing.T, n, points int, sample func(int) Sample) []int {
	by := make([]int, points)
	for _, kernel := range vm.Kernels() {
		t.Setenv(kernelEnv, kernel)
		s := sample(n)
		for i := range by {
			if s.Takes(i) {
				by[i]++
			}
		}
	}
	return by
}

func TestTheKernelsTogetherTakeEachPoint(t *testing.T) {
	for i, n := range taken(t, 3, 20, OneOf) {
		if n == 0 {
			t.Errorf("no kernel takes point %d", i)
		}
	}
}

func TestWhatTheMachinesOwnKernelMayRefuseIsTakenInFullOnce(t *testing.T) {
	for i, n := range taken(t, 5, 20, OneOfElsewhere) {
		if n == 0 {
			t.Errorf("no kernel takes point %d", i)
		}
	}
}

func TestASampleHasPointsAtOddPlacesAndAtEvenOnes(t *testing.T) {
	for _, kernel := range vm.Kernels() {
		t.Setenv(kernelEnv, kernel)
		var odd, even int
		for i := range 20 {
			switch {
			case !OneOf(5).Takes(i):
			case i%2 == 0:
				even++
			default:
				odd++
			}
		}
		if odd != 2 || even != 2 {
			t.Errorf("%s takes %d odd and %d even ones of 20, want 2 of each", kernel, odd, even)
		}
	}
	t.Setenv(kernelEnv, vm.Full)
	defer func() {
		if recover() == nil {
			t.Error("every fourth point is a sample")
		}
	}()
	OneOf(4)
}

func TestTheMachinesOwnKernelTakesEachPoint(t *testing.T) {
	t.Setenv(kernelEnv, Host)
	for i := range 20 {
		if !OneOf(5).Takes(i) || !OneOfElsewhere(5).Takes(i) {
			t.Errorf("point %d is left out", i)
		}
	}
}
