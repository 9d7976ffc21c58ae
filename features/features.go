// Package features finds out what this kernel and an interface can do for this
// caller, by trying it, and says why where they can't.
//
// Versions prove little: distributions bring features to older kernels, build
// them without, or forbid them. So [Kernel] loads, attaches, replaces and
// detaches real programs, at a pair of interfaces that it makes in a network
// namespace of its own and throws away. [Interface] attaches a program that
// passes every packet to the interface itself, for a moment, but only where
// that disturbs nobody; otherwise it repeats what the driver says of itself.
//
// Only sure answers are given. What the caller is not allowed to try, for
// example, is [Unknown], with the reason.
//
// Before Linux 5.11 programs are charged to RLIMIT_MEMLOCK, and it is up to the
// main program to raise it first, by
// [github.com/cilium/ebpf/rlimit.RemoveMemlock].
package features

// Answer is whether something works.
type Answer string

// What the answer to a feature can be.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// How is where an answer comes from.
type How string

const (
	// Tried: it was done, or the kernel refused to.
	Tried How = "tried"
	// Driver: the interface's driver says so. Since Linux 6.3 drivers do.
	Driver How = "driver"
	// NotTried: it follows from something else, which the reason names, or
	// there is no answer.
	NotTried How = "not tried"
)

// Feature is one thing that a kernel or an interface can do, or can't.
type Feature struct {
	// Name is fixed: scripts may rely on it.
	Name string `json:"name"`
	// About says in some words what the feature is.
	About     string `json:"about"`
	Supported Answer `json:"supported"`
	How       How    `json:"how"`
	// Since is the first Linux that has the feature, empty where it depends
	// on the driver alone.
	Since string `json:"since,omitempty"`
	// Reason says why, where the answer is not a plain yes. With a yes it is
	// what else there is to know.
	Reason string `json:"reason,omitempty"`
}

// Find returns the feature of that name. It is nil if there is none.
func Find(features []Feature, name string) *Feature {
	for i := range features {
		if features[i].Name == name {
			return &features[i]
		}
	}
	return nil
}
