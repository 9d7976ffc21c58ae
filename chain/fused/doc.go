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
// A generated main function calls one function after the other. Each member is a
// global function, that is one which the verifier judges for itself: what a
// member does can't make it lose sight of the next. Actions are compared with
// constants in the code; after a member that goes on after XDP_PASS only, that is
// one instruction.
//
// [Load] leaves out the calls of small members without functions, loops and tail
// calls of their own, and has their code in the main function, if the verifier
// takes it so: on some processors a call costs more than such a member.
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
