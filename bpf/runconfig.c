// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* A program that says in its BTF where in a chain it wants to run and after
 * which actions the chain goes on (the libxdp convention). */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(priority, 10);
	__uint(XDP_PASS, 1);
	__uint(XDP_DROP, 1);
} _runconfig SEC(".xdp_run_config");

SEC("xdp")
int runconfig(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
