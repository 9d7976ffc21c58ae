// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The filter of the demo: drops UDP to one port and counts what it does. */
#include "udp.h"

enum {
	COUNTER_SEEN,
	COUNTER_DROPPED,
	COUNTERS,
};

const volatile __u16 drop_port = 7777;

/* Tells one build of the filter from the next: shown by whoever reads the
 * program's read-only data, not used by the program. */
const volatile __u32 version = 1;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 key)
{
	__u64 *packets = bpf_map_lookup_elem(&counters, &key);

	if (packets)
		*packets += 1;
}

SEC("xdp")
int filter(struct xdp_md *ctx)
{
	count(COUNTER_SEEN);
	if (udp_dest_port(ctx) != drop_port)
		return XDP_PASS;

	count(COUNTER_DROPPED);
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
