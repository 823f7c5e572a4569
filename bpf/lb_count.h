/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters. A softirq may interrupt a program in mid-count: hence atomics, although per CPU. */
#ifndef LB_COUNT_H
#define LB_COUNT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_maps.h"

static __always_inline void lb_add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

/* A function of its own: so the enum reaches the BTF. */
static __noinline int lb_count(enum lb_counter which, __u32 messages)
{
	__u32 key = which;
	__u64 *counter = bpf_map_lookup_elem(&lb_counters, &key);

	if (counter)
		lb_add(counter, messages);
	return 0;
}

#endif
