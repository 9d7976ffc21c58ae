// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Looks at packets on their way through an XDP program and the members that it
 * calls, and changes none of them: begin runs before the program, member after
 * each member, end after the program. Package trace loads and attaches them.
 *
 * What is known of the packet that is under way on a processor is in one place:
 * XDP programs run with softirqs off, so there is one at a time. */
#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define STEPS 64
#define TESTS 32
#define HEADERS 256 /* what the filter can see of a packet */
#define SNAP 2048   /* what is kept of one at most */

/* What the filter asks for: groups of tests, of which each of one group has to be
 * true. LAST ends a group. It is what package trace makes of the words. */
#define NOT 1
#define LAST 2

/* The fields of a packet. The first have a number, the others an address. */
enum field {
	ETHERTYPE, VLAN, PROTOCOL, SOURCE_PORT, DESTINATION_PORT, NUMBERS,
	SOURCE4 = NUMBERS, DESTINATION4, SOURCE6, DESTINATION6, FIELDS,
};

struct test {
	__u8 field;
	__u8 flags;
	__u16 lowest, highest;
	__u16 unused;
	__u32 address[4];
	__u32 mask[4];
};

const volatile struct {
	__u32 tests;
	__u32 limit;    /* packets */
	__u32 snap;     /* bytes of each */
	__u32 ifindex;  /* 0 for any */
	__u32 netns;    /* its inode, 0 for any */
	struct test test[TESTS];
} options;

/* Which member it is that a copy of the program looks at. */
const volatile __u32 number SEC(".rodata.member");

struct {
	__u64 told; /* packets; the last may be some more than the limit */
	__u64 lost; /* those that there was no room for */
} counters;

struct step {
	__u32 member;
	__u32 returned;
};

/* What is told of a packet. Layout of package trace. */
struct packet {
	__u64 time;
	__u32 length;
	__u32 kept;
	__u32 verdict;
	__u32 steps; /* more than STEPS are counted only */
	struct step step[STEPS];
	__u8 data[SNAP];
};

struct state {
	__u64 ctx; /* 0 where no packet is followed */
	__u32 present;
	__u16 values[8];
	/* Twice source and destination: of version 4 and 6. */
	__u32 addresses[4][4];
	struct packet packet;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} packets SEC(".maps");

/* What is read of the kernel's own types, which lie elsewhere in each. */
#define KERNEL __attribute__((preserve_access_index))
struct ns_common { unsigned int inum; } KERNEL;
struct net { struct ns_common ns; } KERNEL;
typedef struct { struct net *net; } possible_net_t;
struct net_device { int ifindex; possible_net_t nd_net; } KERNEL;
struct xdp_rxq_info { struct net_device *dev; } KERNEL;
struct xdp_buff { void *data; void *data_end; struct xdp_rxq_info *rxq; } KERNEL;

static __always_inline struct state *here(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&states, &first);
}

/* at makes an offset one that the verifier knows to lie in the data. */
#define at(s, offset) ((s)->packet.data + ((offset) & (HEADERS - 1)))

static __always_inline __u16 two(struct state *s, __u32 offset)
{
	return at(s, offset)[0] << 8 | at(s, offset + 1)[0];
}

static __always_inline void number_is(struct state *s, enum field f, __u16 value)
{
	s->values[f] = value;
	s->present |= 1 << f;
}

static __always_inline void address_is(struct state *s, enum field f, __u32 offset, int words)
{
	for (int i = 0; i < words; i++)
		__builtin_memcpy(&s->addresses[f - SOURCE4][i], at(s, offset + 4 * i), 4);
	s->present |= 1 << f;
}

/* copy copies that much of a packet. The verifier has to see the bounds of the very
 * value that the helper gets. */
static __always_inline long copy(struct state *s, __u64 bytes, void *data)
{
	asm volatile("" : "+r"(bytes));
	if (bytes > SNAP)
		return -1;
	return bpf_probe_read_kernel(s->packet.data, bytes, data);
}

/* dissect finds the fields in the packet's first bytes. */
static __always_inline void dissect(struct state *s, __u32 length)
{
	__u32 offset = 14, protocol;
	__u16 type;

	s->present = 0;
	if (length < offset)
		return;
	type = two(s, 12);
	for (int i = 0; i < 2; i++) {
		if ((type != 0x8100 && type != 0x88a8) || length < offset + 4)
			break;
		/* The innermost is the packet's. */
		number_is(s, VLAN, two(s, offset) & 0xfff);
		type = two(s, offset + 2);
		offset += 4;
	}
	number_is(s, ETHERTYPE, type);
	if (type == 0x0800) {
		if (length < offset + 20)
			return;
		protocol = *at(s, offset + 9);
		number_is(s, PROTOCOL, protocol);
		address_is(s, SOURCE4, offset + 12, 1);
		address_is(s, DESTINATION4, offset + 16, 1);
		if (two(s, offset + 6) & 0x1fff)
			return; /* a later fragment has no ports */
		offset += (*at(s, offset) & 15) * 4;
	} else if (type == 0x86dd) {
		if (length < offset + 40)
			return;
		protocol = *at(s, offset + 6);
		address_is(s, SOURCE6, offset + 8, 4);
		address_is(s, DESTINATION6, offset + 24, 4);
		offset += 40;
		for (int i = 0; i < 4; i++) {
			bool fragment = protocol == 44;

			if (protocol != 0 && protocol != 43 && protocol != 60 && !fragment)
				break;
			if (length < offset + 8)
				break;
			if (fragment && two(s, offset + 2) & ~7) {
				number_is(s, PROTOCOL, *at(s, offset));
				return;
			}
			protocol = *at(s, offset);
			offset += fragment ? 8 : 8 + *at(s, offset + 1) * 8;
		}
		number_is(s, PROTOCOL, protocol);
	} else {
		return;
	}
	if (protocol != 6 && protocol != 17 && protocol != 132 && protocol != 136)
		return;
	if (length < offset + 4)
		return;
	number_is(s, SOURCE_PORT, two(s, offset));
	number_is(s, DESTINATION_PORT, two(s, offset + 2));
}

static __always_inline bool passes(struct state *s, const volatile struct test *t)
{
	__u32 f = t->field;
	bool yes = false;

	if (f < FIELDS && s->present & 1U << f) {
		if (f < NUMBERS) {
			__u16 value = s->values[f & 7];

			yes = value >= t->lowest && value <= t->highest;
		} else {
			__u32 *a = s->addresses[(f - SOURCE4) & 3];

			yes = !(((a[0] & t->mask[0]) ^ t->address[0]) |
				((a[1] & t->mask[1]) ^ t->address[1]) |
				((a[2] & t->mask[2]) ^ t->address[2]) |
				((a[3] & t->mask[3]) ^ t->address[3]));
		}
	}
	return yes != !!(t->flags & NOT);
}

static __always_inline bool matches(struct state *s)
{
	bool all = true;

	if (!options.tests)
		return true;
	for (__u32 i = 0; i < TESTS && i < options.tests; i++) {
		const volatile struct test *t = &options.test[i];

		all = all && passes(s, t);
		if (!(t->flags & LAST))
			continue;
		if (all)
			return true;
		all = true;
	}
	return false;
}

/* mine tells whether the packet came to the interface: programs may run at
 * several. */
static __always_inline bool mine(struct xdp_buff *xdp)
{
	struct net_device *dev;

	if (!options.ifindex)
		return true;
	dev = BPF_CORE_READ(xdp, rxq, dev);
	return (__u32)BPF_CORE_READ(dev, ifindex) == options.ifindex &&
	       (!options.netns || BPF_CORE_READ(dev, nd_net.net, ns.inum) == options.netns);
}

SEC("fentry/main")
int begin(__u64 *args)
{
	struct xdp_buff *xdp = (void *)args[0];
	struct state *s = here();
	__u64 length, known, kept;
	void *data;

	if (!s)
		return 0;
	s->ctx = 0;
	if (*(volatile __u64 *)&counters.told >= options.limit || !mine(xdp))
		return 0;
	data = BPF_CORE_READ(xdp, data);
	length = BPF_CORE_READ(xdp, data_end) - data;
	known = length < HEADERS ? length : HEADERS;
	if (copy(s, known, data))
		return 0;
	dissect(s, known);
	if (!matches(s))
		return 0;
	kept = length < options.snap ? length : options.snap;
	if (kept > known && copy(s, kept, data))
		return 0;
	s->packet.time = bpf_ktime_get_ns();
	s->packet.length = length;
	s->packet.kept = kept;
	s->packet.steps = 0;
	s->ctx = (__u64)xdp;
	return 0;
}

SEC("fexit/member")
int member(__u64 *args)
{
	struct state *s = here();
	__u32 n;

	if (!s || !s->ctx || s->ctx != args[0])
		return 0;
	n = s->packet.steps++;
	if (n < STEPS) {
		s->packet.step[n].member = number;
		s->packet.step[n].returned = args[1];
	}
	return 0;
}

SEC("fexit/main")
int end(__u64 *args)
{
	struct state *s = here();
	__u64 kept;

	if (!s || !s->ctx || s->ctx != args[0])
		return 0;
	s->ctx = 0;
	s->packet.verdict = args[1];
	kept = s->packet.kept;
	asm volatile("" : "+r"(kept));
	if (kept > SNAP)
		return 0;
	if (bpf_ringbuf_output(&packets, &s->packet, __builtin_offsetof(struct packet, data) + kept, 0))
		__sync_fetch_and_add(&counters.lost, 1);
	else
		__sync_fetch_and_add(&counters.told, 1);
	return 0;
}

char _license[] SEC("license") = "GPL";
