// Package livetest tests package live on a real kernel, as root. It has a
// directory of its own so that the pure tests of live itself run anywhere and as
// anybody.
package livetest
