// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Members of a chain that leave a trail: each writes its number behind those of
 * the members that the packet met before, and returns what it was told to. All
 * of them write into the same map, if the test sees to that. Only right while
 * one packet at a time is under way. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define LONGEST 64

const volatile __u32 number;
const volatile __u32 action = XDP_PASS;

struct steps {
	__u32 count;
	__u32 numbers[LONGEST];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steps);
} trail SEC(".maps");

static __always_inline int step(void)
{
	__u32 first = 0;
	struct steps *s = bpf_map_lookup_elem(&trail, &first);

	if (s && s->count < LONGEST)
		s->numbers[s->count++] = number;
	return action;
}

SEC("xdp")
int walker(struct xdp_md *ctx)
{
	return step();
}

SEC("xdp.frags")
int walker_frags(struct xdp_md *ctx)
{
	return step();
}

/* The others change the packet, and so extend only what may do so as well. */

SEC("xdp")
int grows_head(struct xdp_md *ctx)
{
	const int room = 8;

	return bpf_xdp_adjust_head(ctx, -room) ? XDP_ABORTED : step();
}

SEC("xdp")
int cuts_tail(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_tail(ctx, -1) ? XDP_ABORTED : step();
}

SEC("xdp")
int leaves_meta(struct xdp_md *ctx)
{
	const int room = 4;

	return bpf_xdp_adjust_meta(ctx, -room) ? XDP_ABORTED : step();
}

char _license[] SEC("license") = "Dual BSD/GPL";
