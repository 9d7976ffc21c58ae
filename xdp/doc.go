// Package xdp attaches one program to one hook: the XDP hook of a network
// interface, in one mode.
//
// A program is attached in one of two ways. [Hook.AttachLink] makes the hook
// *owned*: a bpf_link holds it, and the kernel refuses every other attach,
// replace and detach until the link ends. [Hook.Attach] makes it *shared*: it
// attaches by netlink, where everybody with CAP_NET_ADMIN can replace what is
// there, and cooperation is all there is: every change carries an
// [Expectation], and the kernel carries it out only while that holds.
//
//	ns, err := xdp.OpenNamespace("")
//	if err != nil { ... }
//	defer ns.Close()
//	hook, err := ns.Hook("eth0", xdp.Auto)
//	if err != nil { ... }
//	link, err := hook.AttachLink(prog)
//	if err != nil { ... } // a conflict names who holds the hook
//	defer link.Close()    // detaches, unless link.Persist was called
//
// Errors are an [*Error] around one of the sentinels ([ErrConflict] and so on).
//
// No handle of this package is closed by the garbage collector: a program stays
// attached until somebody says otherwise, or the process ends.
//
// It needs Linux 5.10 and, unless a function says otherwise, CAP_NET_ADMIN and
// CAP_BPF in the user namespace that owns the network namespace. Where it says
// who holds a hook it can say more with CAP_SYS_ADMIN and CAP_SYS_PTRACE.
package xdp
