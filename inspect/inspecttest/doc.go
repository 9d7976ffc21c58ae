// Package inspecttest tests package inspect on a real kernel, as root: who holds
// what is prepared with bare system calls and with the tools of others, and looked
// at. It has a directory of its own so that the tests of inspect's pure code run
// anywhere and as anybody.
package inspecttest
