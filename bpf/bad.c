// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Reads the packet without asking where it ends: the verifier refuses it. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int bad(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data[13] ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
