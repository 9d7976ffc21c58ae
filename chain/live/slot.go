package live

import (
	"fmt"
	"math/bits"
	"strings"
)

// Places is how many members a chain can have.
const Places = 32

// slotCount is how many slots there are, two a place.
const slotCount = 2 * Places

// Slot is a function of the dispatcher that a member can replace. They are
// numbered in the order that they are called in.
type Slot int

// NoSlot is the slot of what has none.
const NoSlot Slot = -1

// Place is the pair that the slot belongs to.
func (s Slot) Place() int { return int(s) / 2 }

// Twin is the other slot of the pair.
func (s Slot) Twin() Slot { return s ^ 1 }

func (s Slot) valid() bool { return s >= 0 && s < slotCount }

func (s Slot) String() string {
	if s == NoSlot {
		return "no slot"
	}
	return fmt.Sprintf("slot %d", int(s))
}

// function is the name of the function in bpf/live.c.
func (s Slot) function() string { return fmt.Sprintf("slot%d", int(s)) }

// Slots is a set of slots: bit n stands for slot n.
type Slots uint64

// SetOf returns the set of these slots.
func SetOf(slots ...Slot) Slots {
	var set Slots
	for _, s := range slots {
		set = set.With(s)
	}
	return set
}

// Has tells whether the slot is in the set.
func (s Slots) Has(slot Slot) bool { return slot.valid() && s&(1<<slot) != 0 }

// With returns the set with the slot in it.
func (s Slots) With(slot Slot) Slots { return s | 1<<slot }

// Without returns the set with the slot not in it.
func (s Slots) Without(slot Slot) Slots { return s &^ (1 << slot) }

// List returns the slots in their order.
func (s Slots) List() []Slot {
	var list []Slot
	for ; s != 0; s &= s - 1 {
		list = append(list, Slot(bits.TrailingZeros64(uint64(s))))
	}
	return list
}

func (s Slots) String() string {
	var numbers []string
	for _, slot := range s.List() {
		numbers = append(numbers, fmt.Sprint(int(slot)))
	}
	return "{" + strings.Join(numbers, " ") + "}"
}

// crowded are the places of which both slots are in the set.
func (s Slots) crowded() Slots { return s & (s >> 1) & 0x5555555555555555 }

// word is the set as the dispatcher compares it, in bpf/live.c: the first half
// of the slots in the lower 32 bits, and in both halves the first slot in the
// highest bit.
func (s Slots) word() uint64 {
	return uint64(bits.Reverse32(uint32(s))) | uint64(bits.Reverse32(uint32(s>>32)))<<32
}

// slotsOf is the set of which that is the word.
func slotsOf(word uint64) Slots { return Slots(Slots(word).word()) }
