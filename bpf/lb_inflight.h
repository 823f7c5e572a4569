/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which requests are outstanding on an upstream, and since when.
 *
 * Where ids tell responses apart, each request has an entry by (upstream, id), taken
 * out by its response: so a second response is known as such, and when the upstream
 * dies user space knows whose answers cannot come. A request whose id is outstanding
 * there already, or that finds the table full, has none; such requests are ambiguous,
 * and only their number is known.
 *
 * Where the order tells responses apart, the numbers suffice; marks remember when
 * requests left (lb_marks.h).
 */
#ifndef LB_INFLIGHT_H
#define LB_INFLIGHT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_framing.h"
#include "lb_maps.h"
#include "lb_marks.h"
#include "lb_slot.h"

static const volatile struct lb_head lb_no_head;

static __always_inline void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length)
{
	struct lb_inflight_key key = { .slot = m->slot, .generation = m->generation, .id = id };
	struct lb_inflight entry = { .time = m->now };
	struct lb_slot *upstream;
	struct lb_head *head;
	__u64 kept;

	if (!m->generation)
		return;
	if (bpf_map_update_elem(&lb_inflight, &key, &entry, BPF_NOEXIST)) {
		upstream = bpf_map_lookup_elem(&lb_slots, &key.slot);
		if (upstream)
			lb_add(&upstream->ambiguous, 1);
		return;
	}
	if (!(m->framing->flags & LB_KEEP_HEADS) ||
	    bpf_map_update_elem(&lb_heads, &key, (void *)&lb_no_head, BPF_ANY))
		return;
	head = bpf_map_lookup_elem(&lb_heads, &key);
	if (!head)
		return;
	/* Less one: the verifier of 6.1 learns an upper bound here, not that it is not 0. */
	kept = (length < LB_MAX_HEAD ? length : LB_MAX_HEAD) - 1;
	asm volatile("" : "+r"(kept));
	if (kept >= LB_MAX_HEAD)
		return;
	if (!lb_load(m->stream, offset, head->bytes, kept + 1))
		head->length = kept + 1;
}

static __always_inline int lb_awaited(struct lb_measuring *m, __u64 id)
{
	struct lb_inflight_key key = { .slot = m->slot, .generation = m->generation, .id = id };
	struct lb_inflight *entry = bpf_map_lookup_elem(&lb_inflight, &key);
	struct lb_slot *upstream;
	__u32 time;

	if (!entry) {
		upstream = bpf_map_lookup_elem(&lb_slots, &key.slot);
		if (!upstream || upstream->disambiguated == *(volatile __u64 *)&upstream->ambiguous)
			return 0;
		upstream->disambiguated++;
		return 1;
	}
	time = entry->time;
	if (bpf_map_delete_elem(&lb_inflight, &key))
		return 0;
	if (m->framing->flags & LB_KEEP_HEADS)
		bpf_map_delete_elem(&lb_heads, &key);
	lb_took(m->backend, m->now - time);
	return 1;
}

#endif
