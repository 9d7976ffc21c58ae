// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* A member of a chain that does as it is told: it returns what the script has
 * for its number, action or not, and adds its number to those that the packet
 * has met. All of them share the script, if the test sees to that. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define MEMBERS 32

const volatile __u32 number;

struct script {
	__u32 returns[MEMBERS];
	__u32 met; /* how many */
	__u32 order[MEMBERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct script);
} scripts SEC(".maps");

SEC("xdp")
int verdict(struct xdp_md *ctx)
{
	__u32 first = 0, me = number, turn;
	struct script *s = bpf_map_lookup_elem(&scripts, &first);

	if (!s || me >= MEMBERS)
		return XDP_ABORTED;
	turn = s->met++;
	if (turn < MEMBERS)
		s->order[turn] = me;
	return s->returns[me];
}

char _license[] SEC("license") = "Dual BSD/GPL";
