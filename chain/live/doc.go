// Package live runs the chains of owned hooks in a dispatcher that is changed
// while it runs.
//
// The dispatcher is one program (bpf/live.c) with 64 functions that do nothing,
// its slots, called in order. A member of the chain is loaded as an extension
// (freplace) of one of them and attached to the running dispatcher. The link of
// that is what holds the member: the kernel gives a slot to one program only,
// and when the last descriptor or pin of the link is gone, by SIGKILL too, the
// slot is empty at once, and the others go on.
//
// Which slots are called is in one word of 64 bits, which the dispatcher loads
// once for each packet. A packet meets what the word enabled when it came, so
// that one store of the word, [Dispatcher.Commit], changes any number of members
// for the packets after it, all at once.
//
// Slots come in pairs. A pair, the slots 2 p and 2 p + 1, is a place of the
// chain's 32, and has one member: to exchange its program, or after which
// actions the chain goes on, the new one is attached to the other slot of the
// pair, its twin, and both change hands in one store. So what a slot does stays
// as it is for as long as a packet can be in it. A change is made in this order:
//
//  1. [Layout] says which slots the members get. None that is in use is given to
//     another.
//  2. [Dispatcher.SetProceedOn] and [Dispatcher.Attach] for those that are new
//     in their slots, which no packet meets yet.
//  3. [Dispatcher.Commit].
//  4. [kernel.AwaitGracePeriod]: until then packets may be in slots that were
//     disabled, and the links of these must not be closed, nor the slots given
//     to others.
//
// The word and the masks are in a map that this package maps into memory and
// that is pinned nowhere, so that to write it takes CAP_SYS_ADMIN: to open it by
// its id. It can't be frozen, since the next change writes it again. Nothing
// here keeps two processes from changing one dispatcher at once, which is what
// locks are for.
//
// What the kernel does not tell of a dispatcher is in that map as well, so that
// [Open] finds everything by the id of the program that is attached.
package live
