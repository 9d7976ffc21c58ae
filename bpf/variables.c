// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Globals of every kind that can be set when the object is loaded. The array
 * `seen` shows what the program itself reads in them. */
#include <linux/bpf.h>

#include <stdbool.h>

#include <bpf/bpf_helpers.h>

enum verdict {
	VERDICT_PASS = XDP_PASS,
	VERDICT_DROP = XDP_DROP,
};

struct limit {
	__u32 rate;
	struct {
		__s16 low;
		__s16 high;
	} burst;
	__u8 mac[6];
};

const volatile __u8 u8;
const volatile __u16 u16;
const volatile __u32 u32;
const volatile __u64 u64;
const volatile __s8 s8;
const volatile __s16 s16;
const volatile __s32 s32;
const volatile __s64 s64;
const volatile bool flag;
const volatile char name[16] = "default";
const volatile enum verdict verdict = VERDICT_PASS;
const volatile __u16 ports[4] = { 1, 2, 3, 4 };
const volatile struct limit limit = { .rate = 10 };
volatile __u32 writable = 5;
volatile __u32 zeroed;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64[4]);
} seen SEC(".maps");

SEC("xdp")
int variables(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *out = bpf_map_lookup_elem(&seen, &key);

	if (!out)
		return XDP_ABORTED;
	out[0] = u8 + u16 + u32 + u64 + flag + name[0];
	out[1] = s8 + s16 + s32 + s64;
	out[2] = limit.rate + limit.burst.low + limit.burst.high + limit.mac[0] + ports[3];
	out[3] = writable + zeroed;
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
