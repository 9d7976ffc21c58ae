// Command bench measures what Holdfast costs: package xdp against the bare
// system calls, and the holdfast command against xdp-loader and ip. It writes
// docs/benchmarks.md and its plots; `make bench` runs it.
//
// It needs root, xdp-tools and iproute2, and Go to build the command. Every
// number of interfaces has a process with network and mount namespaces of its
// own (a world), which is gone when the process is, also when it is killed.
package main
