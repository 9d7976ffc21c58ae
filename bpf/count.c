// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Counts every packet and lets it pass. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *seen = bpf_map_lookup_elem(&packets, &key);

	if (seen)
		*seen += 1;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
