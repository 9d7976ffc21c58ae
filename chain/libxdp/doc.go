// Package libxdp runs several programs at one shared hook by the protocol of
// libxdp: what it attaches, libxdp's own tools (xdp-loader, xdp-filter, ...)
// see, extend and remove, and it does so with what they attached.
//
// The hook has a *dispatcher*, a program with ten functions that do nothing,
// called in order. Each member of the chain is loaded as an extension (freplace)
// of one of them. Nobody holds the hook: it is attached by netlink, and every
// change builds a new dispatcher beside the old one, with all members attached
// to it, and swaps the two only if the old one is still there. A packet meets
// the old chain or the new one, never a part. Whoever loses such a race reads
// again what is there, and changes that.
//
// Where a member is, is told by pins in a bpffs that all of these tools share:
//
//	/sys/fs/bpf/xdp/                          locked while pins change
//	    dispatch-17-586/                      ifindex, and the dispatcher's id
//	        prog0-prog, prog0-link, ...       a member, and what attaches it
//
// All else is in the dispatcher's read-only data: priorities, actions, flags.
//
// The lock is held for reading pins, for pinning and swapping as one, and for
// unpinning; never while a program is loaded. What was replaced keeps its pins
// until no packet can be in it any more: a change does not wait for that,
// [Chains.Wait] and [Chains.Close] do. A process that is killed anywhere leaves
// the old or the new chain whole, and at most pins that nothing is attached by,
// which the next change at that hook removes, or [Chains.Clean].
//
// It needs Linux 5.10, a kernel that takes extensions, a bpffs, and the
// capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN. Where any of that lacks a
// change fails with [ErrNoFreplace] or [xdp.ErrPermission], and nothing is left
// behind.
package libxdp
