// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The third program of the tutorial: takes one off the time to live (TTL) of
 * IPv4 packets, as everything does that forwards them. */
#include <stddef.h>

#include "ttl.h"

SEC("xdp")
int hop(struct xdp_md *ctx)
{
	struct iphdr *ip = ipv4(ctx);
	__u32 sum;

	if (!ip || ip->ttl <= 1)
		return XDP_PASS;
	ip->ttl--;
	/* The TTL is the upper byte of its word, so the checksum grows by as
	 * much as that shrinks (RFC 1624). */
	sum = ip->check + bpf_htons(0x0100);
	ip->check = sum + (sum >= 0xffff);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
