// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Members of a chain that tell on themselves: how many packets to one UDP port
 * each has met, and when it was last its turn. All of them write into the same
 * maps, if the test sees to that. */
#include "udp.h"

#define MEMBERS 16

const volatile __u16 port = 7777;
/* What each member returns, by its number. */
const volatile __u32 actions[MEMBERS] = {
	[0 ... MEMBERS - 1] = XDP_PASS,
};

struct meeting {
	__u64 packets;
	__u64 turn;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MEMBERS);
	__type(key, __u32);
	__type(value, struct meeting);
} met SEC(".maps");

/* Counts turns. Only right while one packet at a time is under way. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} turns SEC(".maps");

static __always_inline int meet(struct xdp_md *ctx, const __u32 number)
{
	__u32 first = 0, key = number;
	struct meeting *m;
	__u64 *turn;

	if (udp_dest_port(ctx) != port)
		return XDP_PASS;

	m = bpf_map_lookup_elem(&met, &key);
	turn = bpf_map_lookup_elem(&turns, &first);
	if (m && turn) {
		__sync_fetch_and_add(&m->packets, 1);
		*turn += 1;
		m->turn = *turn;
	}
	return actions[number];
}

#define MEMBER(name, number)            \
	SEC("xdp")                      \
	int name(struct xdp_md *ctx)    \
	{                               \
		return meet(ctx, number); \
	}

MEMBER(m0, 0)
MEMBER(m1, 1)
MEMBER(m2, 2)
MEMBER(m3, 3)
MEMBER(m4, 4)
MEMBER(m5, 5)
MEMBER(m6, 6)
MEMBER(m7, 7)
MEMBER(m8, 8)
MEMBER(m9, 9)
MEMBER(m10, 10)
MEMBER(a_member_with_a_long_name, 11)

/* Copes with packets in several buffers. */
SEC("xdp.frags")
int m_frags(struct xdp_md *ctx)
{
	return meet(ctx, 12);
}

SEC("xdp.frags")
int m_frags_too(struct xdp_md *ctx)
{
	return meet(ctx, 13);
}

/* Makes room in front of the packet and gives it back: it changes packet data,
 * so that it may extend only what may do so as well. */
SEC("xdp")
int m_mover(struct xdp_md *ctx)
{
	const int room = 8;

	if (bpf_xdp_adjust_head(ctx, -room) || bpf_xdp_adjust_head(ctx, room))
		return XDP_ABORTED;
	return meet(ctx, 14);
}

char _license[] SEC("license") = "Dual BSD/GPL";
