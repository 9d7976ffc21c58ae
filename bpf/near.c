// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The second program of the tutorial: drops IPv4 packets whose time to live
 * (TTL) is below min_ttl. Who sends with 255, the most there is, and is next
 * door, arrives with 255; nobody who is further away can make it so (RFC 5082). */
#include <stddef.h>

#include "ttl.h"

const volatile __u8 min_ttl = 255;

SEC("xdp")
int near(struct xdp_md *ctx)
{
	struct iphdr *ip = ipv4(ctx);

	if (ip && ip->ttl < min_ttl)
		return XDP_DROP;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
