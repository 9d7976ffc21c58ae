// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* An XDP program in a section whose name says nothing of its type, as objects
 * from before libbpf 1.0 have them. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("prog")
int legacy(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
