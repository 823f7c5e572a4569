/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a client's message to the decision, and what the decision means for its batch. */
#ifndef LB_DIRECT_H
#define LB_DIRECT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_choose.h"
#include "lb_decide.h"
#include "lb_framing.h"
#include "lb_hash.h"
#include "lb_maps.h"
#include "lb_rules.h"
#include "lb_transfer.h"

/* A global function, because the parser asks it in a loop: the verifier looks at it once. */
__noinline __u64 lb_decide(struct __sk_buff *skb, __u32 number, __u32 offset, __u32 length,
			   __u32 available)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_message message = {
		.skb = skb,
		.offset = offset,
		.length = length,
		.available = available,
		.routing = bpf_map_lookup_elem(&lb_routing, &number),
	};
	__u64 decision, place;

	if (!client || !message.routing)
		return 0;
	decision = lb_to_pool(client->pool);
	if (client->routed & LB_ROUTED_RULES) {
		decision = lb_by_rules(&message) ?: decision;
		if (decision == LB_INCOMPLETE || decision & LB_DENY || lb_backend_of(decision))
			return decision;
	}
	place = lb_place(&message, lb_pool_of(decision));
	return place == LB_INCOMPLETE ? place : decision | place;
}

/* Of a client, as measuring.target_generation: what keeps messages apart. */
enum lb_apart {
	LB_APART_ROUTED = 1, /* they go to different upstreams */
	LB_APART_TRANSFERS = 2, /* some are refused */
};

static __always_inline int lb_together(struct lb_measuring *m, __u32 offset, __u32 length)
{
	__u32 client = m->target;
	struct lb_routing *routing;
	__u64 difference;

	if (m->target_generation & LB_APART_TRANSFERS &&
	    lb_is_transfer(m->stream, client, offset, length))
		return 0;
	if (!(m->target_generation & LB_APART_ROUTED))
		return 1;
	routing = bpf_map_lookup_elem(&lb_routing, &client);
	if (!routing)
		return 0;
	difference = lb_decide(m->stream, client, offset, length, length);
	if (lb_denies(routing->decision))
		return difference == routing->decision;
	difference ^= routing->bound;
	return !(difference & routing->bound_mask);
}

/* Turns a client to the pool that its message is for. */
static __always_inline void lb_turn_to(struct lb_slot *client, __u32 number, __u64 decision)
{
	__u32 key = lb_pool_of(decision);
	struct lb_pool *pool;

	if (key == client->to_pool)
		return;
	pool = bpf_map_lookup_elem(&lb_pools, &key);
	if (!pool)
		return;
	client->to_pool = key;
	if (client->route != number)
		client->to_route = pool->route;
}

/*
 * Decides on what stands at the head of the stream of the client in a slot, before
 * lb_choose(), which follows routing->decision; 0: it is no message. Says whether a rule
 * denies it.
 */
__noinline int lb_direct(struct __sk_buff *skb, __u32 number, __u32 offset, __u32 available)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_routing *routing = bpf_map_lookup_elem(&lb_routing, &number);
	struct lb_framing *framing;
	__u32 key, size;
	__s64 seen;

	if (!client || !routing)
		return 0;
	key = client->framing;
	framing = bpf_map_lookup_elem(&lb_framings, &key);
	if (!framing)
		return 0;
	/* See lb_measure_step(). */
	size = ((framing->window - 1) & 63) + 1;
	routing->decision = LB_INCOMPLETE;
	if (size > available || lb_load(skb, offset, client->window, size))
		return 0;
	seen = lb_look(framing, (const struct lb_window *)client->window, 1);
	if (seen < 0) {
		routing->decision = lb_to_pool(client->pool);
		return 0;
	}
	routing->decision = lb_decide(skb, number, offset, seen & LB_MAX_LENGTH, available);
	if (routing->decision == LB_INCOMPLETE)
		return 0;
	if (routing->decision & LB_DENY)
		return 1;
	if (client->routed & LB_ROUTED_RULES)
		lb_turn_to(client, number, routing->decision);
	return 0;
}

#endif
