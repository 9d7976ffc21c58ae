// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The dispatcher of an owned chain: calls the members one after the other, and
 * lets them be exchanged while it runs. A member takes the place of one of the
 * functions slot0 to slot63 (freplace); which of these are called is in one
 * word, which is loaded once for each packet: one store of it changes the chain
 * as a whole.
 *
 * Every two slots, 2 p and 2 p + 1, are a place, of which at most one is
 * enabled. Package chain/live loads this, and says what may be written when. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define SLOTS 64
/* What the function of a slot without a member returns. It is no action, so
 * that to look for it costs a packet nothing that all members pass. */
#define EMPTY 0x48464c56

/* What Holdfast knows its own dispatchers by, with the program's name and that
 * of the map; the number is that of the layout. */
struct {
	__u32 magic;
	__u32 layout;
	/* The slots that are called: from the highest bit down those of the first
	 * half in the lower 32 bits, and those of the second in the upper. */
	__u64 enabled;
	/* Those of the slots, enabled or not, whose proceed_on is another than
	 * XDP_PASS alone. */
	__u64 masked;
	/* Bit n: go on after action n. It stays as it is while the slot is enabled,
	 * and for as long afterwards as a packet may be in it. */
	__u8 proceed_on[SLOTS];
	/* What the program was loaded with, which the kernel does not tell. */
	__u8 frags;
	__u8 device_bound;
	/* The type ids of the slots' functions, which it takes long to find. */
	__u32 functions[SLOTS];
	/* Which of the counters is that of the slot's member. */
	__u8 counter[SLOTS];
} live;

/* What OTHER counts are numbers that are no action. */
#define OTHER (XDP_REDIRECT + 1)
#define SAMPLE 64

/* Package chain/stats makes the map, which outlives dispatchers, and reads it. */
struct counters {
	__u64 verdicts[OTHER + 1];
	__u64 timed, time;
};

struct seen {
	__u64 packets;
	/* When the last member ended that a packet has met, if it is timed, or 0. */
	__u64 clock;
	__u64 unused[6];
	struct counters members[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen);
} stats SEC(".maps");

/* The verifier allows a member only what it has seen of the function that the
 * member replaces: it takes ctx, which may be null here, returns any number,
 * and, by its harmless call, may change the packet. */
#define SLOT(n)					\
	__attribute__((noinline))		\
	int slot##n(struct xdp_md *ctx)		\
	{					\
		volatile int ret = EMPTY;	\
						\
		if (!ctx)			\
			return XDP_ABORTED;	\
		bpf_xdp_adjust_tail(ctx, 0);	\
		return ret;			\
	}

SLOT(0)
SLOT(1)
SLOT(2)
SLOT(3)
SLOT(4)
SLOT(5)
SLOT(6)
SLOT(7)
SLOT(8)
SLOT(9)
SLOT(10)
SLOT(11)
SLOT(12)
SLOT(13)
SLOT(14)
SLOT(15)
SLOT(16)
SLOT(17)
SLOT(18)
SLOT(19)
SLOT(20)
SLOT(21)
SLOT(22)
SLOT(23)
SLOT(24)
SLOT(25)
SLOT(26)
SLOT(27)
SLOT(28)
SLOT(29)
SLOT(30)
SLOT(31)
SLOT(32)
SLOT(33)
SLOT(34)
SLOT(35)
SLOT(36)
SLOT(37)
SLOT(38)
SLOT(39)
SLOT(40)
SLOT(41)
SLOT(42)
SLOT(43)
SLOT(44)
SLOT(45)
SLOT(46)
SLOT(47)
SLOT(48)
SLOT(49)
SLOT(50)
SLOT(51)
SLOT(52)
SLOT(53)
SLOT(54)
SLOT(55)
SLOT(56)
SLOT(57)
SLOT(58)
SLOT(59)
SLOT(60)
SLOT(61)
SLOT(62)
SLOT(63)

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* Keeps the compiler from making more of the comparisons than they are, or of one
 * variable another. */
#define OPAQUE(x) asm volatile("" : "+r"(x))

/* A slot's bit in its half of the word. */
#define BIT(n) (1U << (31 - (n) % 32))

/* PLAIN calls the slot's member and returns where the chain ends with it: all
 * members go on after XDP_PASS alone. */
#define PLAIN(n)						\
	do {							\
		word -= BIT(n);					\
		ret = slot##n(ctx);				\
		if (unlikely(ret != XDP_PASS) && ret != EMPTY)	\
			return ret;				\
	} while (0)

/* MASKED does the same where some of them go on after something else. */
#define MASKED(n)								\
	do {									\
		word -= BIT(n);							\
		ret = slot##n(ctx);						\
		if ((__u32)masked >= BIT(n)) {					\
			masked -= BIT(n);					\
			if (ret != EMPTY && ((__u32)ret > XDP_REDIRECT ||	\
					     !(live.proceed_on[n] >> ret & 1)))	\
				return ret;					\
		} else if (unlikely(ret != XDP_PASS) && ret != EMPTY) {		\
			return ret;						\
		}								\
	} while (0)

/* COUNTED does it for any chain, and counts. The clock runs for few packets only.
 * It is in the map, because a packet has no register to spare for it. */
#define COUNTED(n)									\
	do {										\
		word -= BIT(n);								\
		ret = slot##n(ctx);							\
		if (ret != EMPTY) {							\
			OPAQUE(seen); /* or parts of it are kept on the stack */	\
			count = &seen->members[live.counter[n] % SLOTS];		\
			verdict = ret;							\
			OPAQUE(verdict); /* or the verifier misses its bounds */	\
			if (verdict > XDP_REDIRECT)					\
				verdict = OTHER;					\
			count->verdicts[verdict]++;					\
			if (unlikely(seen->clock)) {					\
				__u64 now = bpf_ktime_get_ns();				\
											\
				count->timed++;						\
				count->time += now - seen->clock;			\
				seen->clock = now;					\
			}								\
			if (!(live.proceed_on[n] >> verdict & 1))			\
				return ret;						\
		}									\
	} while (0)

/* PLACE calls one of the place's two slots, or does something else where it is
 * free. The bits of all slots before have been taken off the word, so what is
 * left of its lower half is below the bit of the last of them, and one
 * comparison, without a mask, tells whether a slot is enabled. */
#define PLACE(CALL, a, b, otherwise)			\
	do {						\
		OPAQUE(word);				\
		if (likely((__u32)word >= BIT(a)))	\
			CALL(a);			\
		else if ((__u32)word >= BIT(b))		\
			CALL(b);			\
		else					\
			otherwise;			\
	} while (0)

/* What else there is to do at a free place: to look whether that was all, or, at
 * the first of eight, whether all of them up to a slot are free. */
#define END				\
	do {				\
		if (unlikely(!word))	\
			goto end;	\
	} while (0)
#define SKIP(last, label)			\
	do {					\
		if ((__u32)word < BIT(last))	\
			goto label;		\
	} while (0)

/* Members are met in the order of their places. */
#define CHAIN(CALL, HALF)				\
	do {						\
		PLACE(CALL, 0, 1, SKIP(15, place8));	\
		PLACE(CALL, 2, 3, END);			\
		PLACE(CALL, 4, 5, END);			\
		PLACE(CALL, 6, 7, END);			\
		PLACE(CALL, 8, 9, END);			\
		PLACE(CALL, 10, 11, END);		\
		PLACE(CALL, 12, 13, END);		\
		PLACE(CALL, 14, 15, END);		\
	place8:						\
		PLACE(CALL, 16, 17, SKIP(31, half));	\
		PLACE(CALL, 18, 19, END);		\
		PLACE(CALL, 20, 21, END);		\
		PLACE(CALL, 22, 23, END);		\
		PLACE(CALL, 24, 25, END);		\
		PLACE(CALL, 26, 27, END);		\
		PLACE(CALL, 28, 29, END);		\
		PLACE(CALL, 30, 31, END);		\
	half:						\
		END;					\
		word >>= 32;				\
		HALF;					\
		PLACE(CALL, 32, 33, SKIP(47, place24));	\
		PLACE(CALL, 34, 35, END);		\
		PLACE(CALL, 36, 37, END);		\
		PLACE(CALL, 38, 39, END);		\
		PLACE(CALL, 40, 41, END);		\
		PLACE(CALL, 42, 43, END);		\
		PLACE(CALL, 44, 45, END);		\
		PLACE(CALL, 46, 47, END);		\
	place24:					\
		PLACE(CALL, 48, 49, END);		\
		PLACE(CALL, 50, 51, END);		\
		PLACE(CALL, 52, 53, END);		\
		PLACE(CALL, 54, 55, END);		\
		PLACE(CALL, 56, 57, END);		\
		PLACE(CALL, 58, 59, END);		\
		PLACE(CALL, 60, 61, END);		\
		PLACE(CALL, 62, 63, END);		\
	end:						\
		return XDP_PASS;			\
	} while (0)

/* The same chain where a member has a mask of its own. It is a function, so that
 * the other need not save what only this one uses. */
static __attribute__((noinline))
int with_masks(struct xdp_md *ctx, __u64 word, __u64 masked)
{
	int ret;

	CHAIN(MASKED, masked >>= 32);
}

SEC("xdp")
int holdfast_live(struct xdp_md *ctx)
{
	__u64 word = *(volatile __u64 *)&live.enabled;
	__u64 masked = word & *(volatile __u64 *)&live.masked;
	int ret;

	if (unlikely(masked))
		return with_masks(ctx, word, masked);
	CHAIN(PLAIN, );
}

/* The chain where somebody wants to know what each member does to packets. Its
 * place in a map of its own is the member's as long as that is in the chain,
 * whichever slot it is in. One packet of SAMPLE on a processor is timed, because
 * two readings of the clock cost more than most members do. */
SEC("xdp")
int holdfast_live_s(struct xdp_md *ctx)
{
	__u64 word = *(volatile __u64 *)&live.enabled;
	struct counters *count;
	struct seen *seen;
	__u32 verdict, key = 0;
	int ret;

	seen = bpf_map_lookup_elem(&stats, &key);
	if (!seen)
		return XDP_ABORTED; /* never: an array has its elements */
	seen->clock = seen->packets++ % SAMPLE ? 0 : bpf_ktime_get_ns();
	CHAIN(COUNTED, );
}

char _license[] SEC("license") = "GPL";
