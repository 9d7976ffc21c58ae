// Package fusedtest tests package fused on a real kernel, as root. It has a
// directory of its own so that the tests of fused itself, and its fuzz target,
// run anywhere and as anybody.
package fusedtest
