// Package bpfprog holds the BPF objects built from the C sources in bpf/: the
// filter of the demo and the programs that the tests attach. Objects and the Go
// code around them are generated and committed, so that neither building nor
// testing needs a compiler for BPF; `go generate` in this directory makes them
// anew, byte by byte the same wherever the repository lies. It needs clang 14,
// llvm-strip and the headers of libbpf and Linux (Debian 12: clang, llvm,
// libbpf-dev, linux-libc-dev).
//
// There are two ways in. LoadFilter, LoadGate and so on give the parsed object
// to load with cilium/ebpf; [ELF] gives the file as it is, for code under test
// that reads files.
//
// The objects are for little-endian machines.
package bpfprog

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

// The asm/ headers lie in a directory named after the machine; clang ignores
// those that do not exist.
//
//go:generate -command bpf2go go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cflags "-O2 -mcpu=v1 -Wall -Wextra -Werror -Wno-unused-parameter -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu"
//go:generate bpf2go Bad ../../bpf/bad.c
//go:generate bpf2go Count ../../bpf/count.c
//go:generate bpf2go Dispatcherv1 ../../bpf/dispatcherv1.c
//go:generate bpf2go Drop ../../bpf/drop.c
//go:generate bpf2go Filter ../../bpf/filter.c
//go:generate bpf2go Frags ../../bpf/frags.c
//go:generate bpf2go Gate ../../bpf/gate.c
//go:generate bpf2go Hop ../../bpf/hop.c
//go:generate bpf2go Inlined ../../bpf/inlined.c
//go:generate bpf2go Legacy ../../bpf/legacy.c
//go:generate bpf2go Mark ../../bpf/mark.c
//go:generate bpf2go Member ../../bpf/member.c
//go:generate bpf2go Mixed ../../bpf/mixed.c
//go:generate bpf2go Near ../../bpf/near.c
//go:generate bpf2go Parts ../../bpf/parts.c
//go:generate bpf2go Pass ../../bpf/pass.c
//go:generate bpf2go Pinned ../../bpf/pinned.c
//go:generate bpf2go Proprietary ../../bpf/proprietary.c
//go:generate bpf2go Root ../../bpf/root.c
//go:generate bpf2go Runconfig ../../bpf/runconfig.c
//go:generate bpf2go Serial ../../bpf/serial.c
//go:generate bpf2go Size ../../bpf/size.c
//go:generate bpf2go Socket ../../bpf/socket.c
//go:generate bpf2go Tailcall ../../bpf/tailcall.c
//go:generate bpf2go Trail ../../bpf/trail.c
//go:generate bpf2go Two ../../bpf/two.c
//go:generate bpf2go Variables ../../bpf/variables.c
//go:generate bpf2go Verdict ../../bpf/verdict.c

//go:embed *.o
var files embed.FS

const suffix = "_bpfel.o"

// ELF returns the object file built from bpf/<name>.c. It panics if there is
// none: names are constants of the calling code.
func ELF(name string) []byte {
	b, err := files.ReadFile(name + suffix)
	if err != nil {
		panic(fmt.Sprintf("bpfprog: no object %q, there are %s", name, strings.Join(Names(), ", ")))
	}
	return b
}

// Names returns the names of all objects, sorted.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // An embedded directory is always there.
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), suffix))
	}
	slices.Sort(names)
	return names
}
