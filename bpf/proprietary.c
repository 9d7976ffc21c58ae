// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Calls a helper that the kernel keeps for GPL programs, without being one:
 * never loads. bpf_trace_printk has been GPL-only from the start, other
 * helpers were opened to everybody in some versions. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int proprietary(struct xdp_md *ctx)
{
	static const char text[] = "packet";

	bpf_trace_printk(text, sizeof(text));
	return XDP_PASS;
}

char _license[] SEC("license") = "Proprietary";
