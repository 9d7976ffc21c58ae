package trace

// The asm/ headers lie in a directory named after the machine; clang ignores
// those that do not exist.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cflags "-O2 -mcpu=v2 -Wall -Wextra -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" programs ../bpf/trace.c
