// Package enginetest holds all engines of chains to one table of behaviours:
// what members may be made of and what a chain makes of what they return. What an
// engine, or a kernel, can't do is in testdata/limits.md, with the error that a
// user gets, and the tests want exactly that.
package enginetest
