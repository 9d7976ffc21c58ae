// Package libxdptest tests package libxdp on a real kernel, as root. It has a
// directory of its own so that the tests of libxdp itself, and their fuzz
// targets, run anywhere and as anybody.
package libxdptest
