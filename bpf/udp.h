// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The low 13 bits of iphdr.frag_off: where in the datagram this fragment
 * starts. Only the fragment at 0 carries the UDP header. */
#define IP_OFFSET_MASK 0x1fff

/* Destination port of a UDP packet over IPv4 or IPv6, in host byte order, or
 * -1 for any other packet. IPv6 extension headers are not walked and VLAN tags
 * not skipped: the senders of the tests and the demo produce neither. */
static __always_inline int udp_dest_port(const struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	struct udphdr *udp;

	if ((void *)(eth + 1) > end)
		return -1;

	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->ihl < 5)
			return -1;
		if (ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(IP_OFFSET_MASK))
			return -1;
		udp = (void *)ip + ip->ihl * 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);

		if ((void *)(ip6 + 1) > end || ip6->nexthdr != IPPROTO_UDP)
			return -1;
		udp = (void *)(ip6 + 1);
	} else {
		return -1;
	}

	if ((void *)(udp + 1) > end)
		return -1;
	return bpf_ntohs(udp->dest);
}
