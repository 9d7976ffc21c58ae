// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* A sound program beside one that the verifier refuses: choosing the sound
 * one must not trip over the other. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int sound(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int unsound(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data[13] ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
