// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Programs made of more than instructions: functions, global data, maps of
 * kinds that only some programs have, relocations. Each passes the packet if
 * what it is made of works, and returns XDP_ABORTED if it does not. */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define PAGE 4096
#define ENOMEM 12
#define CLOCK_MONOTONIC 1

/* Keeps the compiler from knowing what a function returns. */
#define hide(x) asm volatile("" : "+r"(x))

/* Functions and global data. */

const volatile __u32 step = 1;
__u64 from_five = 5;
__u64 from_zero;

static __noinline int twice(int n)
{
	hide(n);
	return 2 * n;
}

static __noinline int thrice(int n)
{
	int two = twice(n);

	hide(two);
	return two + n;
}

__noinline int size_of(struct xdp_md *ctx)
{
	__u32 size = ctx->data_end - ctx->data;

	hide(size);
	return size;
}

SEC("xdp")
int functions(struct xdp_md *ctx)
{
	from_five += step;
	from_zero += step;
	if (from_five != from_zero + 5)
		return XDP_ABORTED;
	return thrice(size_of(ctx)) == 3 * (int)(ctx->data_end - ctx->data) ? XDP_PASS : XDP_ABORTED;
}

SEC("xdp")
int static_functions(struct xdp_md *ctx)
{
	from_five += step;
	from_zero += step;
	if (from_five != from_zero + 5)
		return XDP_ABORTED;
	return thrice(7) == 21 ? XDP_PASS : XDP_ABORTED;
}

/* Spin locks. */

struct guarded {
	struct bpf_spin_lock lock;
	__u64 a, b;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guarded);
} guarded_values SEC(".maps");

SEC("xdp")
int locked(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct guarded *g = bpf_map_lookup_elem(&guarded_values, &key);
	int same;

	if (!g)
		return XDP_ABORTED;
	bpf_spin_lock(&g->lock);
	same = g->a == g->b;
	g->a++;
	g->b++;
	bpf_spin_unlock(&g->lock);
	return same ? XDP_PASS : XDP_ABORTED;
}

/* Ring buffers. */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PAGE);
} sizes SEC(".maps");

SEC("xdp")
int reported(struct xdp_md *ctx)
{
	__u32 size = ctx->data_end - ctx->data;

	return bpf_ringbuf_output(&sizes, &size, sizeof(size), 0) ? XDP_ABORTED : XDP_PASS;
}

/* Maps in maps. */

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { &inner },
};

SEC("xdp")
int nested(struct xdp_md *ctx)
{
	__u32 key = 0;
	void *map = bpf_map_lookup_elem(&outer, &key);
	__u64 *packets;

	if (!map)
		return XDP_ABORTED;
	packets = bpf_map_lookup_elem(map, &key);
	if (!packets)
		return XDP_ABORTED;
	__sync_fetch_and_add(packets, 1);
	return XDP_PASS;
}

/* Relocations against the kernel's types (CO-RE), of which this object's are
 * fragments. */

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct net_device___other {
	int no_such_member;
} __attribute__((preserve_access_index));

SEC("xdp")
int relocated(struct xdp_md *ctx)
{
	if (!bpf_core_field_exists(struct net_device, ifindex) ||
	    bpf_core_field_exists(struct net_device___other, no_such_member))
		return XDP_ABORTED;
	if (bpf_core_type_size(struct net_device) < 512 || !bpf_core_type_id_kernel(struct net_device))
		return XDP_ABORTED;
	return bpf_core_type_id_local(struct net_device) ? XDP_PASS : XDP_ABORTED;
}

/* Functions of the kernel, where it has them. */

extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;

SEC("xdp")
int kernel_functions(struct xdp_md *ctx)
{
	if (bpf_rcu_read_lock && bpf_rcu_read_unlock) {
		bpf_rcu_read_lock();
		bpf_rcu_read_unlock();
	}
	return XDP_PASS;
}

/* Values of the kernel's configuration. */

extern int LINUX_KERNEL_VERSION __kconfig;

SEC("xdp")
int configured(struct xdp_md *ctx)
{
	return LINUX_KERNEL_VERSION >= 0x050a00 ? XDP_PASS : XDP_ABORTED;
}

/* Functions that helpers call: since Linux 5.17, and with timers since 5.15. */

static long add(__u32 i, void *sum)
{
	*(__u64 *)sum += i;
	return 0;
}

SEC("xdp")
int looping(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(10, add, &sum, 0);
	return sum == 45 ? XDP_PASS : XDP_ABORTED;
}

struct alarm {
	struct bpf_timer timer;
	__u64 rang;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct alarm);
} alarms SEC(".maps");

static int ring(void *map, __u32 *key, struct alarm *a)
{
	a->rang++;
	return 0;
}

SEC("xdp")
int timed(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct alarm *a = bpf_map_lookup_elem(&alarms, &key);

	if (!a)
		return XDP_ABORTED;
	/* Linux 7.3 makes no timers on a processor without cmpxchg16b. */
	if (bpf_timer_init(&a->timer, &alarms, CLOCK_MONOTONIC) == -ENOMEM)
		return XDP_TX;
	if (bpf_timer_set_callback(&a->timer, ring) || bpf_timer_start(&a->timer, 0, 0))
		return XDP_ABORTED;
	return XDP_PASS;
}

/* Tail calls of programs that cope with packets in several buffers: since Linux
 * 5.18. */

int landed(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} jumps SEC(".maps") = {
	.values = { &landed },
};

SEC("xdp.frags")
int landed(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp.frags")
int jumping(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &jumps, 0);
	return XDP_ABORTED;
}

/* Programs that change where the packet begins and ends, each by another
 * amount, and one that writes down where it does. */

#define FRONT 8
#define BACK 4
#define META 12

SEC("xdp")
int grown(struct xdp_md *ctx)
{
	if (bpf_xdp_adjust_head(ctx, -FRONT))
		return XDP_ABORTED;
	return XDP_PASS;
}

SEC("xdp")
int cut(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_tail(ctx, -BACK) ? XDP_ABORTED : XDP_PASS;
}

SEC("xdp")
int marked(struct xdp_md *ctx)
{
	__u8 *meta, *data;

	if (bpf_xdp_adjust_meta(ctx, -META))
		return XDP_ABORTED;
	meta = (void *)(long)ctx->data_meta;
	data = (void *)(long)ctx->data;
	if (meta + META > data)
		return XDP_ABORTED;
	__builtin_memset(meta, 0x2a, META);
	return XDP_PASS;
}

__u32 size;
__u32 size_of_meta;

SEC("xdp")
int measured(struct xdp_md *ctx)
{
	size = ctx->data_end - ctx->data;
	size_of_meta = ctx->data - ctx->data_meta;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
