// Package chain is what the programs of one hook have to do with each other:
// in which order they run, and after which actions the next one is met. It is
// pure: it neither asks nor changes the kernel.
//
// The programs of a chain are its members. Each has a priority, lower runs
// first, and proceed-on actions: the chain goes on to the next member when the
// program returned one of these, and otherwise ends with what it returned.
//
// Members of the same priority have an order too, see [Compare]. It is the one
// of libxdp, because every tool of that family sorts a chain anew whenever it
// changes it: only what follows from the members themselves stays as it is.
package chain
