// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Counts into a map that asks to be pinned by its name, so that the next
 * program loaded with the same pin directory goes on counting in it. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* How much one packet counts: tells in the shared map which program ran. */
const volatile __u64 step = 1;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shared SEC(".maps");

SEC("xdp")
int pinned(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *sum = bpf_map_lookup_elem(&shared, &key);

	if (sum)
		__sync_fetch_and_add(sum, step);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
