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
#include "lb_flight.h"
#include "lb_framing.h"
#include "lb_maps.h"
#include "lb_marks.h"
#include "lb_slot.h"
#include "lb_tap.h"

static const volatile struct lb_head lb_no_head;

/* Keeps the start of a request, from which an error reply is made. */
static __always_inline void lb_keep_head(struct lb_measuring *m, __u64 id, __u32 offset,
					 __u32 length)
{
	struct lb_inflight_key key = { .slot = m->slot, .generation = m->generation, .id = id };
	struct lb_head *head;
	__u64 kept;

	if (bpf_map_update_elem(&lb_heads, &key, (void *)&lb_no_head, BPF_ANY))
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

static __always_inline void lb_drop_head(__u32 slot, __u32 generation, __u64 id)
{
	struct lb_inflight_key key = { .slot = slot, .generation = generation, .id = id };

	bpf_map_delete_elem(&lb_heads, &key);
}

static __always_inline void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length)
{
	struct lb_inflight_key key = { .slot = m->slot, .generation = m->generation, .id = id };
	struct lb_inflight entry = { .time = m->now };
	struct lb_slot *upstream;

	if (!m->generation)
		return;
	if (bpf_map_update_elem(&lb_inflight, &key, &entry, BPF_NOEXIST)) {
		upstream = bpf_map_lookup_elem(&lb_slots, &key.slot);
		if (upstream)
			lb_add(&upstream->ambiguous, 1);
		return;
	}
	if (m->framing->flags & LB_KEEP_HEADS)
		lb_keep_head(m, id, offset, length);
}

/* Of a shared upstream: looks, and takes nothing; who gets the batch is who waits for its first. */
static __always_inline int lb_expected(struct lb_measuring *m, __u64 id)
{
	struct lb_slot *upstream = bpf_map_lookup_elem(&lb_slots, &m->slot);
	struct lb_flight *flight = upstream ? lb_flight_of(upstream, id) : NULL;

	if (!flight || flight->state != LB_FLIGHT_TAKEN || lb_given_up(flight))
		return 0;
	if (!m->target_generation) {
		m->target = flight->client;
		m->target_generation = flight->client_generation;
	}
	if (m->target != flight->client || m->target_generation != flight->client_generation)
		return LB_FOR_ANOTHER;
	flight->state = LB_FLIGHT_ANSWERED; /* a second one in this batch is none */
	return 1;
}

static __always_inline int lb_awaited(struct lb_measuring *m, __u64 id)
{
	struct lb_inflight_key key = { .slot = m->slot, .generation = m->generation, .id = id };
	struct lb_inflight *entry;
	struct lb_slot *upstream;
	__u32 time, sample;

	if (m->shared)
		return lb_expected(m, id);
	entry = bpf_map_lookup_elem(&lb_inflight, &key);
	if (!entry) {
		upstream = bpf_map_lookup_elem(&lb_slots, &key.slot);
		if (!upstream || upstream->disambiguated == *(volatile __u64 *)&upstream->ambiguous)
			return 0;
		upstream->disambiguated++;
		return 1;
	}
	time = entry->time;
	sample = entry->sample;
	if (bpf_map_delete_elem(&lb_inflight, &key))
		return 0;
	if (m->framing->flags & LB_KEEP_HEADS)
		lb_drop_head(key.slot, key.generation, id);
	lb_took(m->backend, m->now - time);
	if (sample)
		lb_answered(sample);
	return 1;
}

#endif
