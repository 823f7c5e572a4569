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
 * A few entries are the upstream's own, in sets of a cache line: no lock, and no other
 * line than those that are warm. What finds its set full goes into one table for all
 * upstreams, which costs ten times as much; the upstream counts what it has there, and
 * nobody looks there for nothing. Requests come to an upstream from one program at a
 * time, its client's; its responses to another one, its own.
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

/* The set for an id: as good for those that count up as for those that do not. */
static __always_inline __u32 lb_near_set(__u64 id)
{
	__u32 bits = (__u32)id ^ (__u32)(id >> 32);

	bits ^= bits >> 16;
	bits ^= bits >> 8;
	bits ^= bits >> 4;
	bits ^= bits >> 2;
	return (bits * LB_NEAR_WAYS) & (LB_NEAR - 1);
}

static __always_inline struct lb_near *lb_near_at(struct lb_marks *marks, __u32 place)
{
	return &marks->requests[place & (LB_NEAR - 1)];
}

static __always_inline __u64 lb_left(const struct lb_near *near)
{
	return *(volatile __u64 *)&near->left;
}

/* The upstream's own entry of a request, with what it says, or NULL. */
static __always_inline struct lb_near *lb_near_of(struct lb_marks *marks, __u64 id, __u64 *left)
{
	__u32 set = lb_near_set(id);

	for (__u32 way = 0; way < LB_NEAR_WAYS; way++) {
		struct lb_near *near = lb_near_at(marks, set + way);

		*left = lb_left(near);
		if (*left && near->id == id)
			return near;
	}
	return NULL;
}

/* Enters a request that leaves now; nonzero if it is not alone, or there is no room for it. */
__noinline int lb_enter(__u32 number, __u32 generation, __u64 id, __u32 now)
{
	struct lb_slot *upstream = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &number);
	struct lb_inflight_key key = { .slot = number, .generation = generation, .id = id };
	struct lb_inflight entry = { .time = now };
	struct lb_near *near, *room = NULL;
	__u32 set = lb_near_set(id);

	if (!upstream || !marks)
		return 1;
	for (__u32 way = 0; way < LB_NEAR_WAYS; way++) {
		near = lb_near_at(marks, set + way);
		if (!lb_left(near))
			room = near;
		else if (near->id == id)
			return 1;
	}
	if (*(volatile __u64 *)&upstream->far && bpf_map_lookup_elem(&lb_inflight, &key))
		return 1;
	if (room) {
		room->id = id;
		__sync_lock_test_and_set(&room->left, (__u64)now << 32);
		return 0;
	}
	if (bpf_map_update_elem(&lb_inflight, &key, &entry, BPF_NOEXIST))
		return 1;
	lb_add(&upstream->far, 1);
	return 0;
}

/* Takes out the request that a response has come to, and times it; 0 if there is none. */
__noinline int lb_take_out(__u32 number, __u32 generation, __u64 id, __u32 backend, __u32 now)
{
	struct lb_slot *upstream = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &number);
	struct lb_inflight_key key = { .slot = number, .generation = generation, .id = id };
	struct lb_inflight *entry;
	struct lb_near *near;
	__u32 time, sample;
	__u64 left;

	if (!upstream || !marks)
		return 0;
	near = lb_near_of(marks, id, &left);
	if (near) {
		*(volatile __u64 *)&near->left = 0;
		time = left >> 32;
		sample = left;
		goto taken;
	}
	if (!*(volatile __u64 *)&upstream->far)
		return 0;
	entry = bpf_map_lookup_elem(&lb_inflight, &key);
	if (!entry)
		return 0;
	time = entry->time;
	sample = entry->sample;
	if (bpf_map_delete_elem(&lb_inflight, &key))
		return 0;
	lb_add(&upstream->far, -1);
taken:
	lb_took(backend, now - time);
	if (sample)
		lb_answered(sample);
	return 1;
}

/* Has the response to an outstanding request recognized by a number; nonzero if it has no entry. */
static __always_inline int lb_recognize(__u32 number, __u32 generation, __u64 id, __u32 sample)
{
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &number);
	struct lb_inflight_key key = { .slot = number, .generation = generation, .id = id };
	struct lb_inflight *entry;
	struct lb_near *near;
	__u64 left, with;

	if (!marks)
		return 1;
	near = lb_near_of(marks, id, &left);
	if (near) {
		/* It may be an earlier request's of the same id, whose response comes right now. */
		with = (left & ~0xffffffffULL) | sample;
		return __sync_val_compare_and_swap(&near->left, left, with) != left;
	}
	entry = bpf_map_lookup_elem(&lb_inflight, &key);
	if (!entry)
		return 1;
	entry->sample = sample;
	return 0;
}

static __always_inline void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length)
{
	struct lb_slot *upstream;

	if (!m->generation)
		return;
	if (lb_enter(m->slot, m->generation, id, m->now)) {
		upstream = bpf_map_lookup_elem(&lb_slots, &m->slot);
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
	struct lb_slot *upstream;

	if (m->shared)
		return lb_expected(m, id);
	if (!lb_take_out(m->slot, m->generation, id, m->backend, m->now)) {
		upstream = bpf_map_lookup_elem(&lb_slots, &m->slot);
		if (!upstream || upstream->disambiguated == *(volatile __u64 *)&upstream->ambiguous)
			return 0;
		upstream->disambiguated++;
		return 1;
	}
	if (m->framing->flags & LB_KEEP_HEADS)
		lb_drop_head(m->slot, m->generation, id);
	return 1;
}

#endif
