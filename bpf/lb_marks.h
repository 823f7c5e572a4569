/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long messages took; and when requests left, where their order tells them apart. */
#ifndef LB_MARKS_H
#define LB_MARKS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_histogram.h"
#include "lb_maps.h"
#include "lb_tap.h"

static __always_inline __u32 lb_now(void)
{
	/* Never 0, which marks a free entry. */
	return (__u32)(bpf_ktime_get_ns() / 1000) | 1;
}

/* A message of a backend took so many microseconds. */
static __always_inline void lb_took(__u32 backend, __u32 us)
{
	struct lb_duration *duration = bpf_map_lookup_elem(&lb_durations, &backend);

	if (!duration)
		return;
	lb_add(&duration->buckets[lb_bucket(us) & (LB_BUCKETS - 1)], 1);
	lb_add(&duration->sum, us);
}

struct lb_marking {
	__u64 *times;
	__u32 backend;
	__u32 first; /* number of the first message on its upstream */
	__u32 now;
};

static long lb_mark_step(__u32 i, void *context)
{
	struct lb_marking *m = context;
	__u32 number = m->first + i;

	m->times[number & (LB_MARKS - 1)] = (__u64)number << 32 | m->now;
	return 0;
}

static long lb_measured_step(__u32 i, void *context)
{
	struct lb_marking *m = context;
	__u32 number = m->first + i;
	__u64 *time = &m->times[number & (LB_MARKS - 1)];
	__u32 us = m->now - (__u32)*time;

	if (!*time || *time >> 32 != number)
		return 0;
	*time = 0;
	lb_took(m->backend, us);
	return 0;
}

static __always_inline __u64 *lb_times(struct lb_marks *marks)
{
	return (__u64 *)marks->requests;
}

/*
 * Remembers when requests left for an upstream, the first of them as its first-th.
 * With more than LB_MARKS in flight the older ones are not measured.
 */
static __always_inline void lb_mark(__u32 upstream, __u32 first, __u32 requests)
{
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &upstream);
	struct lb_marking marking = { .first = first, .now = lb_now() };

	if (!marks)
		return;
	marking.times = lb_times(marks);
	bpf_loop(requests, lb_mark_step, &marking, 0);
}

static __always_inline void lb_measured(__u32 upstream, __u32 backend, __u32 first, __u32 responses)
{
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &upstream);
	struct lb_marking marking = { .backend = backend, .first = first, .now = lb_now() };

	if (!marks)
		return;
	marking.times = lb_times(marks);
	bpf_loop(responses, lb_measured_step, &marking, 0);
	lb_answered_by_order(marks, first, responses);
}

#endif
