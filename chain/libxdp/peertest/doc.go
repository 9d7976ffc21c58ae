// Package peertest holds tests and no code: Holdfast and libxdp's own tool,
// xdp-loader, in the versions that are in use, at one hook. Each reads, adds to
// and takes from the chains that each other made, on every kernel of the test
// matrix.
//
// What the others refuse by design is part of what is tested, as is what
// xdp-loader prints and returns: scripts rely on it.
package peertest
