// Package realtest holds package holdfasttest to the kernel: the same random
// changes are made on both, as root. It has a directory of its own so that the
// tests of holdfasttest run anywhere and as anybody.
package realtest
