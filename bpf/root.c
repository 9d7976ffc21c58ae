// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The root of Katran's shared mode: runs the first program that there is in its
 * array, and passes where there is none. Who knows the array's pin puts programs
 * into it. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define PLACES 3

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} root_array SEC(".maps");

SEC("xdp")
int root(struct xdp_md *ctx)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < PLACES; i++)
		bpf_tail_call(ctx, &root_array, i);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
