// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* A program that does its work in a tail call. The kernel empties a program
 * array when the last descriptor or pin of it goes, even while the program
 * runs: `enter` then falls through and passes what `drop_udp` would drop. */
#include "udp.h"

const volatile __u16 port = 7777;

int drop_udp(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} jumps SEC(".maps") = {
	.values = {
		[0] = &drop_udp,
	},
};

SEC("xdp/target")
int drop_udp(struct xdp_md *ctx)
{
	return udp_dest_port(ctx) == port ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int enter(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &jumps, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
