// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Stands guard on one UDP port: no packet to it may pass, and each one is
 * counted for the version that dropped it. A packet that arrives behind the
 * gate met no program. */
#include "udp.h"

#define GENERATIONS 4096

const volatile __u16 port = 7777;
const volatile __u32 generation;

/* Shared by all versions under test. One array for all processors, with atomic
 * adds: the sum over generations must come out to the packet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATIONS);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

SEC("xdp")
int gate(struct xdp_md *ctx)
{
	__u32 key = generation;
	__u64 *dropped;

	if (udp_dest_port(ctx) != port)
		return XDP_PASS;

	dropped = bpf_map_lookup_elem(&hits, &key);
	if (dropped)
		__sync_fetch_and_add(dropped, 1);
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
