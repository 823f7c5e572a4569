/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Marks: when requests left, so that their responses tell how long they took. */
#ifndef LB_MARKS_H
#define LB_MARKS_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_histogram.h"
#include "lb_maps.h"

static __always_inline __u32 lb_now(void)
{
	/* Never 0, which marks a free entry. */
	return (__u32)(bpf_ktime_get_ns() / 1000) | 1;
}

/* Tag of the i-th message of a batch: its id, or its number where order counts. */
static __always_inline bool lb_by_id(const struct lb_framing *framing)
{
	return framing->flags & LB_HAS_ID && !(framing->flags & LB_FIFO);
}

struct lb_marking {
	const __u32 *tags; /* NULL: first, first + 1, ... */
	__u64 *times;
	struct lb_duration *duration;
	__u32 first;
	__u32 now;
};

static long lb_mark_step(__u32 i, void *context)
{
	struct lb_marking *m = context;
	__u32 tag = m->tags ? m->tags[i & (LB_MAX_BATCH - 1)] : m->first + i;

	m->times[tag & (LB_MARKS - 1)] = (__u64)tag << 32 | m->now;
	return 0;
}

static long lb_measured_step(__u32 i, void *context)
{
	struct lb_marking *m = context;
	__u32 tag = m->tags ? m->tags[i & (LB_MAX_BATCH - 1)] : m->first + i;
	__u64 *time = &m->times[tag & (LB_MARKS - 1)];
	__u32 us = m->now - (__u32)*time;

	if (!*time || *time >> 32 != tag)
		return 0;
	*time = 0;
	lb_add(&m->duration->buckets[lb_bucket(us) & (LB_BUCKETS - 1)], 1);
	lb_add(&m->duration->sum, us);
	return 0;
}

/*
 * Remembers when the requests of a batch left for an upstream: by id, or by
 * their order where the framing has no id or keeps the order. A request that
 * finds its entry taken (more than LB_MARKS in flight) replaces the older one,
 * whose response is then not measured.
 */
static __always_inline void lb_mark(const struct lb_framing *framing, struct lb_slot *client,
				    struct lb_marks *from, struct lb_slot *upstream,
				    struct lb_marks *to)
{
	struct lb_marking marking = {
		.tags = lb_by_id(framing) ? from->tags : NULL,
		.times = to->times,
		.first = upstream->sent,
		.now = lb_now(),
	};

	bpf_loop(client->expecting, lb_mark_step, &marking, 0);
}

static __always_inline void lb_measured(const struct lb_framing *framing, struct lb_slot *upstream,
					struct lb_marks *marks)
{
	struct lb_marking marking = {
		.tags = lb_by_id(framing) ? marks->tags : NULL,
		.times = marks->times,
		.duration = bpf_map_lookup_elem(&lb_durations, &upstream->backend),
		.first = upstream->answered,
		.now = lb_now(),
	};

	if (marking.duration)
		bpf_loop(upstream->expecting, lb_measured_step, &marking, 0);
}

#endif
