// Package conformance holds one test and no code: what the kernel does at the
// XDP hook, operation by operation, and what package xdp makes of it.
//
// Each row of the table says what the bare system call answers, with errno and
// the kernel's own words, and what the same intention returns through package
// xdp, or why it cannot be said there. The rows are facts that the rest of
// Holdfast builds on; they run on the machine's own kernel and on every kernel
// of the test matrix, and where one differs, its row says what it does.
package conformance
