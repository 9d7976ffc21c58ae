// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Lets every packet pass and copes with packets in several buffers, so that
 * it can run natively where the MTU is bigger than a page. Needs 5.18. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int xdp_frags(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
