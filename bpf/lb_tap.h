/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Taps: some of a listener's messages, for somebody who looks.
 *
 * A message is sampled in its verdict (lb_sample.h). What remembers that it is
 * outstanding remembers the sample's number too, and when its response comes a second
 * record says so: user space puts the two together. So nothing is kept in the kernel
 * but a number beside each start time, and nothing waits there for a response that
 * does not come.
 *
 * Samples go through a ring buffer, and those that find it full are counted. Each tap
 * has a rate, a token bucket as in lb_rate.h; who loses the race for a token does
 * without it. While no tap is open all this is one word that is read for each batch.
 */
#ifndef LB_TAP_H
#define LB_TAP_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_maps.h"

static __always_inline struct lb_taps *lb_all_taps(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&lb_taps, &zero);
}

/* Whether anybody looks at anything. */
static __always_inline bool lb_tapped(void)
{
	struct lb_taps *taps = lb_all_taps();

	return taps && *(volatile __u32 *)&taps->open;
}

static __always_inline bool lb_due(struct lb_tap *tap, __u64 now)
{
	__u64 before = *(volatile __u64 *)&tap->full, from = before > now ? before : now;

	if (from + tap->interval > now + tap->burst)
		return false;
	return __sync_val_compare_and_swap(&tap->full, before, from + tap->interval) == before;
}

/* The response to a request that was sampled has come. A global function: it is rare. */
__noinline int lb_answered(__u32 number)
{
	struct lb_record *answer = bpf_ringbuf_reserve(&lb_samples, sizeof(*answer), 0);

	if (!answer)
		return 0; /* user space shows the request without it, in time */
	answer->kind = LB_RECORD_ANSWER;
	answer->number = number;
	answer->time = bpf_ktime_get_ns();
	bpf_ringbuf_submit(answer, 0);
	return 0;
}

/* Responses of an upstream whose order tells them apart: its first-th and so on. */
static __always_inline void lb_answered_by_order(struct lb_marks *marks, __u32 first,
						 __u32 responses)
{
	__u64 sampled = marks->sampled;

	if (!sampled || (__u32)(sampled >> 32) - first >= responses)
		return;
	if (__sync_val_compare_and_swap(&marks->sampled, sampled, 0) == sampled)
		lb_answered(sampled);
}

#endif
