// Package crashtest kills Holdfast at every kernel call of every change that it
// makes, on each of its floors: package xdp alone, the arbiter, and the
// command. It has a directory of its own because its processes are made from
// the test binary, and because a sweep takes minutes.
package crashtest
