// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Passes everything and carries a number that can be read back from the
 * kernel, through the read-only data of whatever program is attached: the
 * order of concurrent replaces is proved by it. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

const volatile __u32 serial;

SEC("xdp")
int serial_pass(struct xdp_md *ctx)
{
	/* Read only so that the program references its read-only data: the
	 * kernel lists no other map under the program's id. */
	(void)serial;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
