// Command bench measures what Holdfast costs: package xdp against the bare
// system calls, the holdfast command against xdp-loader and ip, and shared chains
// against xdp-loader. It writes docs/benchmarks.md and its plots; `make bench`
// runs it.
//
// It needs root, xdp-tools and iproute2, Go to build the command, and QEMU. Every
// number of interfaces has a process with network and mount namespaces of its
// own (a world), which is gone when the process is, also when it is killed.
// Chains have a virtual machine, where this program runs as well: a machine's own
// kernel may refuse extensions.
package main
