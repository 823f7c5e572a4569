/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The choice: which of a client's upstreams gets its next message. */
#ifndef LB_PICK_H
#define LB_PICK_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_decide.h"
#include "lb_loop.h"
#include "lb_maps.h"

enum lb_turn {
	LB_LAG = 64 * LB_STRIDE, /* how far a backend may fall behind its turns */
};

struct lb_picking {
	struct lb_route *route;
	struct lb_turns *turns;
	__u64 floor; /* of the pool */
	__u64 best_score, best_time;
	__u64 weights; /* of the candidates so far */
	__u32 balance;
	__u32 excluded; /* a bit for each upstream */
	/* Where rules decide: the only pool, and the only backend, plus one; 0: any. */
	__u32 pool;
	__u32 backend;
	__s32 best;
	__u32 shared; /* several upstreams of one backend stand side by side */
	__u32 last; /* backend of the last candidate ... */
	__u32 best_backend; /* ... and of the best */
	__u64 best_load;
};

/* Requests that are outstanding on one upstream. */
static __always_inline __u64 lb_load_of(const struct lb_upstream *reference)
{
	__u32 number = reference->slot;
	struct lb_slot *slot = bpf_map_lookup_elem(&lb_slots, &number);

	return slot ? slot->sent - slot->answered - slot->written_off : 0;
}

static long lb_pick_step(__u32 i, void *context)
{
	struct lb_picking *p = context;
	struct lb_upstream *upstream = &p->route->upstreams[i & (LB_MAX_UPSTREAMS - 1)];
	__u32 number = upstream->backend;
	struct lb_backend *backend;
	__u64 score = 0, load = 0, time;

	if (!upstream->generation || p->excluded & (1U << (i & 31)))
		return 0;
	backend = bpf_map_lookup_elem(&lb_backends, &number);
	if (!backend || !backend->weight)
		return 0;
	if (p->pool && (backend->pool + 1 != p->pool || (p->backend && number + 1 != p->backend)))
		return 0;
	if (p->shared) {
		load = lb_load_of(upstream);
		if (p->last == number + 1) {
			/* The backend has been considered: only the upstream may be another. */
			if (p->best_backend != number || load >= p->best_load)
				return 0;
			p->best = i;
			p->best_load = load;
			return 0;
		}
		p->last = number + 1;
	}
	time = p->turns->times[number & (LB_MAX_BACKENDS - 1)];
	/* No batch brings it so far ahead: the number was another backend's, of another pool. */
	if (time > p->floor + 2 * LB_MAX_BATCH * (__u64)backend->stride) {
		time = p->floor;
		p->turns->times[number & (LB_MAX_BACKENDS - 1)] = time;
	}
	if (p->balance == LB_RANDOM) {
		/* Each candidate replaces the earlier ones with its share. */
		p->weights += backend->weight;
		if (bpf_get_prandom_u32() % p->weights >= backend->weight)
			return 0;
	} else {
		if (p->balance == LB_LEAST_OUTSTANDING)
			score = (backend->sent - backend->answered - backend->written_off + 1) *
				backend->stride;
		if (p->best >= 0 &&
		    (score > p->best_score || (score == p->best_score && time >= p->best_time)))
			return 0;
	}
	p->best = i;
	p->best_score = score;
	p->best_time = time;
	p->best_backend = number;
	p->best_load = load;
	return 0;
}

/*
 * Index in the client's route of who gets its next message, or -1; excluded has a bit for
 * each that does not. A function of its own, so that the verifier looks at it once.
 */
__noinline int lb_pick(__u32 number, __u32 excluded)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_picking picking = {
		.best_score = lb_unknown(0),
		.best_time = lb_unknown(0),
		.weights = lb_unknown(0),
		.excluded = excluded,
		.pool = lb_unknown(0),
		.backend = lb_unknown(0),
		.best = lb_unknown(-1),
		.last = lb_unknown(0),
		.best_backend = lb_unknown(0),
		.best_load = lb_unknown(0),
	};
	__u32 zero = 0, route;
	struct lb_pool *pool;

	if (!client)
		return -1;
	if (client->routed & LB_ROUTED_RULES) {
		struct lb_routing *routing = bpf_map_lookup_elem(&lb_routing, &number);

		if (!routing)
			return -1;
		picking.pool = lb_unknown(lb_pool_of(routing->decision) + 1);
		picking.backend = lb_backend_of(routing->decision);
	}
	route = client->to_route;
	pool = bpf_map_lookup_elem(&lb_pools, &client->to_pool);
	picking.route = bpf_map_lookup_elem(&lb_routes, &route);
	picking.turns = bpf_map_lookup_elem(&lb_turns, &zero);
	if (!pool || !picking.route || !picking.turns)
		return -1;
	picking.floor = picking.turns->floor[client->pool & (LB_MAX_POOLS - 1)];
	picking.balance = pool->balance;
	picking.shared = route != number;
	bpf_loop(LB_MAX_UPSTREAMS, lb_pick_step, &picking, 0);
	return picking.best;
}

/*
 * Charges a backend for the messages that it gets. One without turns for a while must not
 * get them all at once: it is set LB_LAG behind the others with its first. Only then: of
 * several that are behind, the one that waits for longest is next.
 */
static __always_inline void lb_charge(__u32 number, __u32 stride, __u32 pool, __u32 messages)
{
	__u32 zero = 0;
	struct lb_turns *turns = bpf_map_lookup_elem(&lb_turns, &zero);
	__u64 *time, *floor;

	if (!turns)
		return;
	time = &turns->times[number & (LB_MAX_BACKENDS - 1)];
	floor = &turns->floor[pool & (LB_MAX_POOLS - 1)];
	if (*floor > LB_LAG && *time < *floor - LB_LAG)
		*time = *floor - LB_LAG;
	if (*time > *floor)
		*floor = *time;
	*time += (__u64)messages * stride;
}

#endif
