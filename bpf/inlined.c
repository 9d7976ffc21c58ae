// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* What the members of a chain do, and the same inlined by hand into one program:
 * what a chain costs is the difference. Each program bears the number of members
 * that are inlined into it. */
#include "udp.h"

struct listed {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
};

/* Looks up who sent the packet, if it is a UDP packet over IPv4, and returns the
 * action that the map has for him. */
static __always_inline long look_up(struct xdp_md *ctx, void *map)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp;
	__u32 source, *action;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (ip->ihl < 5 || ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(IP_OFFSET_MASK))
		return XDP_PASS;
	udp = (void *)ip + ip->ihl * 4;
	if ((void *)(udp + 1) > end)
		return XDP_PASS;

	source = ip->saddr;
	action = bpf_map_lookup_elem(map, &source);
	return action ? *action : XDP_PASS;
}

/* A member that passes, as far as the compiler knows one that may do otherwise. */
static __always_inline long pass(struct xdp_md *ctx)
{
	long action = XDP_PASS;

	asm volatile("" : "+r"(action));
	return action;
}

/* The next member is met after XDP_PASS only. */
#define INLINE(member)				\
	do {					\
		long action = (member);		\
						\
		if (action != XDP_PASS)		\
			return action;		\
	} while (0)

#define TIMES_0(X)
#define TIMES_1(X) X(0)
#define TIMES_2(X) TIMES_1(X) X(1)
#define TIMES_3(X) TIMES_2(X) X(2)
#define TIMES_4(X) TIMES_3(X) X(3)
#define TIMES_5(X) TIMES_4(X) X(4)
#define TIMES_6(X) TIMES_5(X) X(5)
#define TIMES_7(X) TIMES_6(X) X(6)
#define TIMES_8(X) TIMES_7(X) X(7)
#define TIMES_9(X) TIMES_8(X) X(8)
#define TIMES_10(X) TIMES_9(X) X(9)
#define TIMES_20(X) TIMES_10(X) TIMES_10(X)
#define TIMES_32(X) TIMES_20(X) TIMES_10(X) TIMES_2(X)

/* Each member has a map of its own. */
#define MAP(n) struct listed listed##n SEC(".maps");
TIMES_10(MAP)

#define LOOK_UP(n) INLINE(look_up(ctx, &listed##n));
#define LOOKS_UP(n)				\
	SEC("xdp")				\
	int look_up_##n(struct xdp_md *ctx)	\
	{					\
		TIMES_##n(LOOK_UP)		\
		return XDP_PASS;		\
	}

#define PASS(n) INLINE(pass(ctx));
#define PASSES(n)				\
	SEC("xdp")				\
	int pass_##n(struct xdp_md *ctx)	\
	{					\
		TIMES_##n(PASS)			\
		return XDP_PASS;		\
	}

PASSES(0)
PASSES(1)
PASSES(2)
PASSES(3)
PASSES(4)
PASSES(5)
PASSES(6)
PASSES(7)
PASSES(8)
PASSES(9)
PASSES(10)
PASSES(20)
PASSES(32)

LOOKS_UP(1)
LOOKS_UP(2)
LOOKS_UP(5)
LOOKS_UP(10)

/* A member of a chain that does the same. */
struct listed listed SEC(".maps");

SEC("xdp")
int looks_up(struct xdp_md *ctx)
{
	return look_up(ctx, &listed);
}

char _license[] SEC("license") = "Dual BSD/GPL";
