// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The first program of the tutorial: drops packets that are longer than
 * max_length, with their Ethernet header. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

const volatile __u32 max_length = 1514;

SEC("xdp")
int size(struct xdp_md *ctx)
{
	if (ctx->data_end - ctx->data > max_length)
		return XDP_DROP;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
