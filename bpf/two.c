// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Two programs in one object, each in a section of its own: whoever loads it
 * has to say which one is meant. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* One global for each program: setting the other program's is no mistake, it
 * belongs to the same object. */
const volatile __u32 first_action = XDP_PASS;
const volatile __u32 second_action = XDP_DROP;

SEC("xdp")
int first(struct xdp_md *ctx)
{
	return first_action;
}

SEC("xdp/second")
int second(struct xdp_md *ctx)
{
	return second_action;
}

char _license[] SEC("license") = "Dual BSD/GPL";
