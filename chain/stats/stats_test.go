package stats

import (
	"testing"
	"time"
)

// set writes a counter where a program would.
func (e *element) set(offset int, n uint64) { e[offset/8] = n }

func TestProcessorsAddUp(t *testing.T) {
	each := make([]element, 3)
	each[0].set(Packets, 5)
	each[2].set(Packets, 6)
	for i := range each {
		at := Begin + 63*Size
		for verdict := range Other + 1 {
			each[i].set(at+8*verdict, uint64(10*(verdict+1)+i))
		}
		each[i].set(at+int(Timed), 2)
		each[i].set(at+int(Time), 100)
	}
	got := sum(each)
	want := All{Packets: 11}
	want.Members[63] = Counters{
		Verdicts: Verdicts{Aborted: 33, Drop: 63, Pass: 93, TX: 123, Redirect: 153, Other: 183}, Timed: 6, Time: 300,
	}
	if got != want {
		t.Errorf("got %+v", got)
	}
	c := got.Members[63]
	if c.Verdicts.Sum() != 648 || c.PerRun() != 50*time.Nanosecond || c.Since(c) != (Counters{}) || (Counters{}).PerRun() != 0 {
		t.Errorf("sum %d, per run %s, since itself %+v", c.Verdicts.Sum(), c.PerRun(), c.Since(c))
	}
}
