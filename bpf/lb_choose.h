/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where do a client's next messages go, and may they go now?
 *
 * The parser asks before it measures: in front of a message the client can still be
 * paused. Once a message has begun to come in it cannot, and goes to a live upstream
 * whatever waits there: a source exceeds the budget by one message at most.
 */
#ifndef LB_CHOOSE_H
#define LB_CHOOSE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_flight.h"
#include "lb_framing.h"
#include "lb_hash.h"
#include "lb_loop.h"
#include "lb_maps.h"
#include "lb_marks.h"
#include "lb_pick.h"
#include "lb_room.h"
#include "lb_slot.h"

/* What was found. Short, because the stack of 6.1 is: it counts 512 bytes over all calls. */
struct lb_choice {
	struct lb_room room;
	__u32 slot;
	__u32 generation;
	__u32 backend;
	/* Messages that may be outstanding on the backend beside those that are; 0: what the
	 * choice depends on has not arrived yet. */
	__u16 limit;
	__u16 shared; /* the upstream carries the messages of many clients */
	__u16 reserved; /* on a shared upstream: requests that are in its sent already */
	__u16 done;
};

static __always_inline bool lb_reserve_batch(const struct lb_slot *client, struct lb_slot *upstream,
					     struct lb_choice *choice)
{
	__u32 number = client->to_pool, wanted = client->batch;
	struct lb_pool *pool = bpf_map_lookup_elem(&lb_pools, &number);

	if (!pool)
		return false;
	if (choice->limit < wanted)
		wanted = choice->limit;
	choice->reserved = lb_reserve(upstream, pool->max_in_flight, wanted);
	choice->limit = choice->reserved;
	return choice->reserved;
}

static __always_inline bool lb_at_limit(const struct lb_backend *backend)
{
	__u64 most = backend->max_outstanding;

	return most && backend->sent - backend->answered - backend->written_off >= most;
}

/*
 * One attempt, for the client in a slot: LB_RUNNING if the upstream in a place of its route
 * lives and has room (anyhow: or has none), else what is wrong with it. This one and the next
 * are functions of their own, so that the verifier looks at them once.
 */
__noinline int lb_try(__u32 number, __u32 place, __u32 anyhow, struct lb_choice *choice)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number), *upstream;
	struct lb_upstream reference;
	struct lb_backend *backend;
	__u64 outstanding, most;
	struct lb_route *route;
	struct lb_room room;
	__u32 key;

	if (!choice || !client)
		return LB_PAUSED_NO_UPSTREAM;
	key = client->to_route;
	route = bpf_map_lookup_elem(&lb_routes, &key);
	if (!route)
		return LB_PAUSED_NO_UPSTREAM;
	reference = route->upstreams[place & (LB_MAX_UPSTREAMS - 1)];
	upstream = lb_slot_of(reference.slot, reference.generation);
	backend = bpf_map_lookup_elem(&lb_backends, &reference.backend);
	if (!backend)
		return LB_PAUSED_NO_UPSTREAM;
	if (!upstream) {
		if (reference.slot != LB_VACANT || !reference.generation)
			return LB_PAUSED_NO_UPSTREAM;
		choice->backend = reference.backend;
		return lb_at_limit(backend) ? LB_PAUSED_LIMIT : LB_PAUSED_CONNECT;
	}
	room = lb_room(reference.slot, upstream, 1U << LB_TCP_ESTABLISHED);
	if (!room.alive)
		return LB_PAUSED_NO_UPSTREAM;
	choice->room = room;
	choice->slot = reference.slot;
	choice->generation = reference.generation;
	choice->backend = reference.backend;
	choice->shared = key != number;
	choice->limit = LB_MAX_BATCH;
	most = backend->max_outstanding;
	if (anyhow) {
		if (most)
			choice->limit = 1;
		return LB_RUNNING;
	}
	if (lb_full(&room, upstream))
		return LB_PAUSED_FULL;
	outstanding = backend->sent - backend->answered - backend->written_off;
	if (most && outstanding >= most)
		return LB_PAUSED_LIMIT;
	if (most && most - outstanding < LB_MAX_BATCH)
		choice->limit = most - outstanding;
	if (choice->shared && !lb_reserve_batch(client, upstream, choice))
		return LB_PAUSED_LIMIT;
	return LB_RUNNING;
}

enum lb_binding {
	LB_FREE,
	LB_BOUND, /* to the upstream that it used last */
	LB_PREFERS, /* the one that it has waited for; all others are excluded so far */
};

struct lb_choosing {
	struct lb_slot *client;
	struct lb_choice *choice;
	__u32 number; /* of the client's slot */
	__u32 begun;
	enum lb_binding bound;
	__u32 excluded; /* a bit for each upstream that was tried */
	__u32 anyhow; /* one without room will do */
	__s32 obstacle;
};

/*
 * The backend that a client waits to be connected to has its turn now, so that others that
 * come meanwhile choose another one. lb_charge_requests() does not take it twice.
 */
static __always_inline void lb_take_turn(struct lb_slot *client, const struct lb_choice *choice)
{
	__u32 number = choice->backend;
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &number);

	if (!backend)
		return;
	lb_charge(number, backend->stride, client->to_pool, 1);
	client->charged = 1;
}

static long lb_choose_step(__u32 __attribute__((unused)) i, void *context)
{
	struct lb_choosing *c = context;
	struct lb_slot *client = c->client;
	int picked = -1, problem;

	if (c->bound == LB_BOUND)
		picked = c->excluded ? -1 : (int)client->chosen;
	else if (client->routed)
		picked = lb_pick_hashed(c->number, c->excluded);
	if (picked < 0 && c->bound != LB_BOUND)
		picked = lb_pick(c->number, c->excluded);
	if (picked < 0) {
		if (c->bound == LB_PREFERS) {
			c->bound = LB_FREE;
			client->charged = 0;
			c->excluded = 0;
			return 0;
		}
		if (c->anyhow || !c->begun || c->obstacle == LB_PAUSED_NO_UPSTREAM)
			return 1;
		c->anyhow = 1;
		c->excluded = 0;
		return 0;
	}
	c->excluded |= 1U << (picked & (LB_MAX_UPSTREAMS - 1));
	problem = lb_try(c->number, picked, c->anyhow, c->choice);
	if (problem == LB_PAUSED_CONNECT && c->begun)
		return 0; /* it cannot wait for that */
	if (problem == LB_PAUSED_CONNECT) {
		client->wanted = 1U << (picked & (LB_MAX_UPSTREAMS - 1));
		c->obstacle = problem;
		lb_take_turn(client, c->choice);
		return 1;
	}
	if (problem) {
		/* Room will come sooner than an upstream. */
		if (problem < c->obstacle)
			c->obstacle = problem;
		return 0;
	}
	client->chosen = picked;
	c->choice->done = 1;
	return 1;
}

/*
 * Whether the client has to stay with its upstream: its answers keep their order only
 * while one upstream gives them all. A quiet request that may be answered all the same is
 * not outstanding, for nobody knows whether its answer will come; but until the answer to
 * a later request shows that none will, it has the same effect.
 */
static __always_inline bool lb_bound(const struct lb_slot *client, const struct lb_framing *framing)
{
	return framing->flags & LB_FIFO &&
	       (client->open || client->sent != client->answered + client->written_off);
}

/*
 * Whether the message at the head goes where those that are outstanding went. Where order
 * matters it waits for their answers else; so does one that cannot be decided on yet,
 * because once it has begun it could not wait any more.
 */
static __always_inline bool lb_means_bound(const struct lb_routing *routing)
{
	return routing->decision != LB_INCOMPLETE &&
	       !((routing->decision ^ routing->bound) & routing->bound_mask);
}

/*
 * Whether the upstream that a client has to stay with is one of a backend that gets nothing
 * new. Its messages wait for the answers that it is owed, and then go elsewhere.
 */
static __always_inline bool lb_leaves(const struct lb_slot *client)
{
	__u32 number = client->route;
	struct lb_route *route = bpf_map_lookup_elem(&lb_routes, &number);
	struct lb_upstream *upstream;
	struct lb_backend *backend;

	/* What is only open is never answered for certain: that would be for ever. */
	if (!route || client->sent == client->answered + client->written_off)
		return false;
	upstream = &route->upstreams[client->chosen & (LB_MAX_UPSTREAMS - 1)];
	number = upstream->backend;
	backend = bpf_map_lookup_elem(&lb_backends, &number);
	return upstream->generation && backend && !backend->weight;
}

/*
 * Fills in what was found for the client in a slot; LB_RUNNING, or why it has to wait.
 * begun: too late to pause, so an upstream without room is better than none.
 */
__noinline int lb_choose(__u32 number, __u32 begun, struct lb_choice *choice)
{
	struct lb_choosing choosing = {
		.client = bpf_map_lookup_elem(&lb_slots, &number),
		.choice = choice,
		.number = number,
		.begun = begun,
		.excluded = lb_unknown(0),
		.anyhow = lb_unknown(0),
		.obstacle = lb_unknown(LB_PAUSED_NO_UPSTREAM),
	};
	struct lb_framing *framing;
	__u32 key;

	if (!choice || !choosing.client)
		return LB_PAUSED_NO_UPSTREAM;
	choice->done = 0;
	choice->reserved = 0;
	key = choosing.client->framing;
	framing = bpf_map_lookup_elem(&lb_framings, &key);
	if (!framing)
		return LB_PAUSED_NO_UPSTREAM;
	choosing.bound = lb_unknown(lb_bound(choosing.client, framing) ? LB_BOUND : LB_FREE);
	choice->limit = 1;
	if (choosing.client->routed) {
		struct lb_routing *routing = bpf_map_lookup_elem(&lb_routing, &number);

		if (!routing)
			return LB_PAUSED_NO_UPSTREAM;
		if (lb_denies(routing->decision)) {
			choice->limit = LB_MAX_BATCH;
			choice->shared = choosing.client->route != number;
			return LB_RUNNING;
		}
		if (choosing.bound && !lb_means_bound(routing))
			return LB_PAUSED_ORDER;
		if (routing->decision == LB_INCOMPLETE) {
			/* Wherever it goes, it cannot wait once it has begun. */
			if (!begun && choosing.client->vacant) {
				choosing.client->wanted = ~0U;
				return LB_PAUSED_CONNECT;
			}
			choice->limit = 0;
			choice->shared = choosing.client->route != number;
			return LB_RUNNING;
		}
	}
	if (choosing.bound && !begun && lb_leaves(choosing.client))
		return LB_PAUSED_ORDER;
	if (!begun && choosing.client->wanted) {
		if (!choosing.bound) {
			choosing.bound = lb_unknown(LB_PREFERS);
			choosing.excluded = lb_unknown(~choosing.client->wanted);
		}
		choosing.client->wanted = 0;
	}
	bpf_loop(2 * LB_MAX_UPSTREAMS, lb_choose_step, &choosing, 0);
	if (choice->done)
		return LB_RUNNING;
	choice->limit = 1;
	/* When its upstream is gone nothing more comes from it: the next attempt is free. */
	if (choosing.obstacle == LB_PAUSED_NO_UPSTREAM)
		choosing.client->open = 0;
	return choosing.obstacle;
}

/* Gives back what was reserved on a shared upstream and not used. */
static __always_inline void lb_unreserve(const struct lb_choice *c, __u32 used)
{
	struct lb_slot *upstream;

	if (c->reserved == used)
		return;
	upstream = bpf_map_lookup_elem(&lb_slots, &c->slot);
	if (upstream)
		lb_add(&upstream->sent, (__u64)used - c->reserved);
}

/* How many of an upstream's quiet requests have certainly arrived. Before each batch for it. */
static __always_inline void lb_watch_quiet(struct lb_slot *upstream, const struct lb_room *room)
{
	__u64 delivered = upstream->redirected_bytes - room->backlog - room->unacknowledged;

	/* Negative while what user space said before the first message is not acknowledged. */
	if ((__s64)delivered < (__s64)upstream->mark_bytes)
		return;
	upstream->delivered_quiet = upstream->mark_quiet;
	upstream->mark_bytes = upstream->redirected_bytes;
	upstream->mark_quiet = upstream->quiet;
}

/* Charges client, upstream and backend for requests that are about to be sent. */
static __always_inline void lb_charge_requests(const struct lb_choice *c, struct lb_slot *client,
					       const struct lb_framing *framing, __u32 messages,
					       __u32 expecting)
{
	struct lb_slot *upstream = bpf_map_lookup_elem(&lb_slots, &c->slot);
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &c->backend);

	if (!upstream || !backend)
		return;
	if (!lb_by_id(framing))
		lb_mark(c->slot, upstream->sent, expecting);
	lb_watch_quiet(upstream, &c->room);
	upstream->quiet += messages - expecting;
	lb_add(&upstream->sent, (__u64)expecting - c->reserved);
	lb_add(&client->sent, expecting);
	lb_add(&backend->sent, expecting);
	lb_charge(c->backend, backend->stride, client->to_pool, messages - client->charged);
	client->charged = 0;
}

#endif
