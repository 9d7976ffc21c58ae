package live

import (
	"errors"
	"fmt"
)

// ErrFull: there are more members than places.
var ErrFull = errors.New("the chain is full")

// Wanted is a member as a chain is to have it.
type Wanted struct {
	// Slot is where it is now, NoSlot for one that is not in this dispatcher.
	Slot Slot
	// Anew says that its program or its mask is to be another, so that it
	// can't keep its slot.
	Anew bool
}

// Arrangement says which slots members get.
type Arrangement struct {
	// Slots has one for each member, in the order that they were given in.
	Slots []Slot
	// New says that they are those of a new dispatcher, because in this one not
	// all members can have one.
	New bool
}

// Layout finds slots for the members of a chain, given in the order that they
// are to run in. taken are the slots that nobody can be given: all that are
// enabled, also those that the change is to disable, and others that have a link
// still.
//
//   - A member keeps its slot, unless it is wanted anew or has to make way. As
//     few as possible make way, and among the choices that are left as many as
//     possible of those that are wanted anew stay in their place, in the twin of
//     their slot.
//   - Members that are new, and come after all that stay, take the next places
//     one by one: so a chain that only ever grows at its end never has one make
//     way, as long as there are places.
//   - All others are spread over the free places between those that stay, so
//     that the next ones find room on either side. At the end of the chain they
//     leave one place between each other: a free place costs each packet a
//     comparison or two.
//
// A place of which one slot is taken by a member that leaves is as good as a free
// one, by its twin. So a new dispatcher is needed only where links are left in
// slots that are not enabled. In a new one members are as [Fresh] has them.
//
// It is an ErrFull if there are more than Places.
func Layout(members []Wanted, taken Slots) (Arrangement, error) {
	n := len(members)
	if n > Places {
		return Arrangement{}, fmt.Errorf("%w: %d members are more than the %d places of a dispatcher; detach some first", ErrFull, n, Places)
	}
	free := freeSlots(taken)
	stay := staying(members, taken, free)
	if stay == nil {
		slots, err := Fresh(n)
		return Arrangement{Slots: slots, New: true}, err
	}
	a := Arrangement{Slots: make([]Slot, n)}
	// Between two that stay is a run of others. What stays before the first run
	// is place -1, and after the last one place Places.
	first, above := 0, 0
	for i := 0; i <= n; i++ {
		end := i == n
		if !end && !stay[i] {
			continue
		}
		below := Places
		if !end {
			below = members[i].Slot.Place()
		}
		var room []Slot
		for p := above; p < below; p++ {
			if free[p] != NoSlot {
				room = append(room, free[p])
			}
		}
		run := members[first:i]
		pick := even
		if end {
			pick = apart
			if allNew(run) {
				pick = dense
			}
		}
		for k := range run {
			a.Slots[first+k] = room[pick(k, len(run), len(room))]
		}
		if end {
			break
		}
		a.Slots[i] = members[i].Slot
		if members[i].Anew {
			a.Slots[i] = members[i].Slot.Twin()
		}
		first, above = i+1, below+1
	}
	return a, nil
}

// Fresh returns the slots of n members in a dispatcher that has none: side by
// side, from the first place on. A free place costs each packet a comparison or
// two, and one before the end is lost to a chain that only grows there, until
// nearly all make way. When the first member comes between others all that make
// way are spread.
func Fresh(n int) ([]Slot, error) {
	if n > Places {
		return nil, fmt.Errorf("%w: %d members are more than the %d places of a dispatcher; detach some first", ErrFull, n, Places)
	}
	slots := make([]Slot, n)
	for i := range slots {
		slots[i] = Slot(2 * i)
	}
	return slots, nil
}

// freeSlots has a slot for each place that can be given away, NoSlot where there
// is none. The first one of a pair is the cheaper one to call.
func freeSlots(taken Slots) [Places]Slot {
	var free [Places]Slot
	for p := range free {
		free[p] = NoSlot
		for _, s := range []Slot{Slot(2*p + 1), Slot(2 * p)} {
			if !taken.Has(s) {
				free[p] = s
			}
		}
	}
	return free
}

// staying tells which members stay in their place. It is nil if whoever stays,
// the others find no room.
func staying(members []Wanted, taken Slots, free [Places]Slot) []bool {
	n := len(members)
	// before[p] is how many places before place p have a slot to give away.
	var before [Places + 1]int
	for p, s := range free {
		before[p+1] = before[p]
		if s != NoSlot {
			before[p+1]++
		}
	}
	// best is the best choice among the members before i if i stays, for i == n
	// among all. What counts first is to keep a slot.
	type choice struct {
		possible bool
		score    int
		previous int
	}
	const keepsSlot, keepsPlace = Places + 1, 1
	best := make([]choice, n+1)
	for i := range best {
		place, score := Places, 0
		if i < n {
			m := members[i]
			if !m.Slot.valid() || m.Anew && taken.Has(m.Slot.Twin()) {
				continue
			}
			place, score = m.Slot.Place(), keepsSlot
			if m.Anew {
				score = keepsPlace
			}
		}
		for j := -1; j < i; j++ {
			from, base := 0, 0
			if j >= 0 {
				if !best[j].possible || members[j].Slot.Place() >= place {
					continue
				}
				from, base = members[j].Slot.Place()+1, best[j].score
			}
			if before[place]-before[from] < i-j-1 {
				continue
			}
			if total := base + score; !best[i].possible || total > best[i].score {
				best[i] = choice{true, total, j}
			}
		}
	}
	if !best[n].possible {
		return nil
	}
	stay := make([]bool, n)
	for i := best[n].previous; i >= 0; i = best[i].previous {
		stay[i] = true
	}
	return stay
}

func allNew(run []Wanted) bool {
	for _, m := range run {
		if m.Slot != NoSlot {
			return false
		}
	}
	return true
}

// These pick a place for the i-th of n members out of room places, of which there
// are enough.

func dense(i, _, _ int) int { return i }

// even leaves the same room before, between and after the members.
func even(i, n, room int) int { return (i+1)*(room+1)/(n+1) - 1 }

// apart leaves one place before each member and the rest after the last, or is
// even where that is too much.
func apart(i, n, room int) int {
	if 2*n+1 <= room {
		return 2*i + 1
	}
	return even(i, n, room)
}
