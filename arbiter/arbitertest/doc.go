// Package arbitertest tests package arbiter on a real kernel, as root. It has a
// directory of its own so that the tests of arbiter's pure code run anywhere and
// as anybody.
package arbitertest
