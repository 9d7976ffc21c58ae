// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* A dispatcher of version 1 of libxdp's protocol, which nothing makes any more:
 * for tests that meet one. What came later is missing: a version in the
 * configuration, flags, and slots that may change the packet. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define SLOTS 10
#define UNUSED 31 /* what a slot without a member returns */

/* The version is the length of the array, and only BTF has it. */
__uint(dispatcher_version, 1) SEC("xdp_metadata");

struct config {
	__u8 members;
	__u32 proceed_on[SLOTS];
	__u32 priority[SLOTS];
};

const volatile struct config conf;

#define SLOT(n)                                \
	__attribute__((noinline))              \
	int prog##n(struct xdp_md *ctx)        \
	{                                      \
		volatile int ret = UNUSED;     \
                                               \
		if (!ctx)                      \
			return XDP_ABORTED;    \
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

#define CALL(n)                                                   \
	do {                                                      \
		int ret;                                          \
                                                                  \
		if (conf.members < (n) + 1)                       \
			return XDP_PASS;                          \
		ret = prog##n(ctx);                               \
		if (!((1U << (ret & 31)) & conf.proceed_on[n]))   \
			return ret;                               \
	} while (0)

SEC("xdp")
int xdp_dispatcher(struct xdp_md *ctx)
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
