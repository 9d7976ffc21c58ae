// Package fused is an engine of chains: it links the programs of a chain into
// one XDP program, which any kernel from Linux 5.10 on loads that has BTF of its
// own, without taking extensions (freplace).
//
//	program, err := fused.Load([]fused.Member{
//		{Name: "guard", Priority: 10, ProceedOn: chain.DefaultProceedOn, Program: guard},
//		{Name: "count", Priority: 50, ProceedOn: chain.DefaultProceedOn, Program: count},
//	})
//
// Members come from package object: a [object.Prepared] is a program whose maps
// are there. Maps stay their members', so that a chain that is linked anew goes
// on with what they hold. Whatever changes in a chain, it is a new program, to be
// put in the place of the old one by package xdp.
//
// # What is linked
//
// A generated main function runs one member after the other. A member is made a
// part of it, which costs nothing but the comparison of what it returns. One that
// makes tail calls is called instead, as a global function, that is one which the
// verifier judges for itself: what it does can't make it lose sight of the next.
//
// The chain means the same in every engine: it goes on to the next member when
// one returned an action that the member proceeds on. A number that is no action
// ends it, and is what the chain returns. When the last member says to go on, the
// chain has run to its end and returns XDP_PASS.
//
// Who is in the chain is written into the program's BTF and can be read back from
// the kernel, see [Read].
//
// # Limits
//
// One program has the limits of one program. [Check] tells of each before
// anything is loaded, see [Limit].
package fused
