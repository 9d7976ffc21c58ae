// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The dispatcher of a shared hook: calls the members of a chain one after the
 * other, by the protocol of libxdp. A member takes the place of one of the
 * functions prog0 to prog9 (freplace); which of them are in use, and after which
 * actions the chain goes on, is in conf, which is written before the program is
 * loaded. It is built once for each version of the protocol, with VERSION 2 or
 * 3. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define SLOTS 10
#define UNUSED 31 /* what a slot without a member returns */

/* The layouts are the protocol's: other tools read and write them. */
struct config {
	__u8 magic;
	__u8 version;
	__u8 members;
	__u8 frags;
	__u32 proceed_on[SLOTS];
	__u32 priority[SLOTS];
	__u32 flags[SLOTS];
#if VERSION >= 3
	__u8 device_bound;
#endif
};

const volatile struct config conf;

/* The verifier allows a member only what it has seen of the function that the
 * member replaces: it takes ctx, which may be null here, returns any number,
 * and, by its harmless call, may change the packet. */
#define SLOT(n)                                \
	__attribute__((noinline))              \
	int prog##n(struct xdp_md *ctx)        \
	{                                      \
		volatile int ret = UNUSED;     \
                                               \
		if (!ctx)                      \
			return XDP_ABORTED;    \
		bpf_xdp_adjust_tail(ctx, 0);   \
		return ret;                    \
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

/* conf is constant once it is frozen, so that the verifier drops what is not in
 * use. */
#define CALL(n)                                                          \
	do {                                                             \
		int ret;                                                 \
                                                                         \
		if (conf.members < (n) + 1)                              \
			return XDP_PASS;                                 \
		ret = prog##n(holdfast_ctx);                             \
		if (!((1U << (ret & 31)) & conf.proceed_on[n]))          \
			return ret;                                      \
	} while (0)

/* The name of the parameter, which the kernel keeps in BTF, is what Holdfast
 * knows its own dispatchers by. */
SEC("xdp")
int xdp_dispatcher(struct xdp_md *holdfast_ctx)
{
	CALL(0);
	CALL(1);
	CALL(2);
	CALL(3);
	CALL(4);
	CALL(5);
	CALL(6);
	CALL(7);
	CALL(8);
	CALL(9);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
