// Package loadtest tests package object on a real kernel, as root. It has a
// directory of its own so that the tests of object itself, and their fuzz
// targets, run anywhere and as anybody.
package loadtest
