// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* A member of a chain that leaves its mark in the packet: behind the marks of
 * those that the packet met before. So each packet to the port tells which
 * members it met, in which order. */
#include "udp.h"

const volatile __u16 port = 7777;
const volatile __u32 mark;

#define MARKS 16

/* What the sender put into the packet, and how many marks there are. */
struct marks {
	__u64 number;
	__u8 count;
	__u8 marks[MARKS];
} __attribute__((packed));

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	struct marks marks;
} __attribute__((packed));

static __always_inline int leave_mark(struct xdp_md *ctx)
{
	struct headers *h = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u8 *place;
	__u32 n;

	if (udp_dest_port(ctx) != port)
		return XDP_PASS;
	if ((void *)(h + 1) > end)
		return XDP_PASS;
	n = h->marks.count;
	if (n >= MARKS)
		return XDP_PASS;
	place = h->marks.marks + n;
	if ((void *)(place + 1) > end)
		return XDP_PASS;
	*place = mark;
	h->marks.count = n + 1;
	return XDP_PASS;
}

SEC("xdp")
int xdp_mark(struct xdp_md *ctx)
{
	return leave_mark(ctx);
}

SEC("xdp.frags")
int xdp_mark_frags(struct xdp_md *ctx)
{
	return leave_mark(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
