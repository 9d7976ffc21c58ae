// Package trace follows packets through the programs of a hook: which members of
// its chain each packet met, what each returned, and which of them ended the
// chain. It works on chains of Holdfast and of libxdp, and on programs alone,
// whoever attached them.
//
// Nothing that is looked at is changed. The kernel calls small programs
// (bpf/trace.c) before and after the functions of others, which it offers for
// looking (fentry and fexit); they are held by descriptors of this process, so a
// trace ends with it, however it ends. docs/trace.md says what a trace costs, and
// where the kernel lets less be seen.
package trace
