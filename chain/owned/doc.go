// Package owned is the chain of an owned hook, and what a transaction makes of
// it. It is pure: it neither asks nor changes the kernel, so that whoever
// executes a transaction, shows it first, or plays one in memory comes to the
// same result, or to the same refusal.
//
//	before := owned.Chain{} // as it was read
//	priority := uint32(10)
//	r, err := before.Apply(owned.Transaction{Changes: []owned.Change{
//		{Op: owned.Add, Name: "ddos", Priority: &priority},
//		{Op: owned.Add, Name: "sample", After: "ddos"},
//		{Op: owned.Remove, Name: "debug", Expect: 7},
//	}})
//	// r.After is the chain to be, r.Diff.String() what is different in it.
//
// # Order
//
// Members run by priority, the lowest first, and those of the same priority in
// the order that they came in. A name decides nothing, unlike in the chains of
// [github.com/holdfast-bpf/holdfast/chain/libxdp], which every tool sorts anew. A
// member can be put right before or right after another one, and then has the
// other's priority unless it is given one that fits there as well.
//
// # Generations
//
// A transaction that changes something makes the next generation of the chain,
// and what it touched has the number of that generation. So an expectation about
// a generation, of the chain or of a member, fails if anything happened to it
// since. A chain that has come to its end is another one when it begins again,
// at generation 1.
package owned
