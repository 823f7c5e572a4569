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
#include "lb_framing.h"
#include "lb_loop.h"
#include "lb_maps.h"
#include "lb_marks.h"
#include "lb_pick.h"
#include "lb_room.h"
#include "lb_slot.h"

struct lb_choosing {
	struct lb_framing *framing;
	struct lb_slot *client;
	struct lb_route *route;
	struct lb_turns *turns;
	__u32 excluded;
	__u32 begun; /* too late to pause: an upstream without room is better than none */
	__u32 anyhow;
	/* what was found */
	enum lb_pause obstacle;
	__u32 slot;
	__u32 generation;
	__u32 backend;
	__u32 limit; /* messages that may be outstanding on the backend beside those that are */
	struct lb_room room;
	bool done;
};

/* One attempt: pick an upstream, see that it lives and has room. 1 ends it. */
static long lb_choose_step(__u32 i, void *context)
{
	struct lb_choosing *c = context;
	struct lb_slot *client = c->client, *upstream;
	struct lb_upstream *reference;
	struct lb_backend *backend;
	__u64 outstanding, most;
	int picked;

	/* Answers keep their order only while one upstream gives them all. */
	if (c->framing->flags & LB_FIFO && client->sent != client->answered + client->written_off) {
		if (i)
			return 1;
		picked = client->chosen;
	} else {
		picked = lb_pick(client, c->route, c->turns, c->excluded);
	}
	if (picked < 0)
		return 1;
	picked &= LB_MAX_UPSTREAMS - 1;
	c->excluded |= 1U << picked;
	reference = &c->route->upstreams[picked];
	c->slot = reference->slot;
	c->generation = reference->generation;
	c->backend = reference->backend;
	upstream = lb_slot_of(c->slot, c->generation);
	backend = bpf_map_lookup_elem(&lb_backends, &c->backend);
	if (!upstream || !backend)
		return 0;
	c->room = lb_room(c->slot, upstream, 1U << LB_TCP_ESTABLISHED);
	if (!c->room.alive)
		return 0;
	c->limit = LB_MAX_BATCH;
	most = backend->max_outstanding;
	if (!c->anyhow) {
		if (lb_full(&c->room, upstream)) {
			c->obstacle = LB_PAUSED_FULL;
			return 0;
		}
		outstanding = backend->sent - backend->answered - backend->written_off;
		if (most && outstanding >= most) {
			if (c->obstacle != LB_PAUSED_FULL)
				c->obstacle = LB_PAUSED_LIMIT;
			return 0;
		}
		if (most && most - outstanding < LB_MAX_BATCH)
			c->limit = most - outstanding;
	} else if (most) {
		c->limit = 1;
	}
	client->chosen = picked;
	c->obstacle = LB_RUNNING;
	c->done = true;
	return 1;
}

/* Fills in what was found; LB_RUNNING, or why the client has to wait. */
static __always_inline enum lb_pause lb_choose(struct lb_choosing *c, __u32 client)
{
	__u32 zero = 0;

	c->route = bpf_map_lookup_elem(&lb_routes, &client);
	c->turns = bpf_map_lookup_elem(&lb_turns, &zero);
	if (!c->route || !c->turns)
		return LB_PAUSED_NO_UPSTREAM;
	c->obstacle = lb_unknown(LB_PAUSED_NO_UPSTREAM);
	c->excluded = lb_unknown(0);
	c->anyhow = lb_unknown(0);
	bpf_loop(LB_MAX_UPSTREAMS, lb_choose_step, c, 0);
	if (!c->done && c->begun && c->obstacle != LB_PAUSED_NO_UPSTREAM) {
		c->excluded = lb_unknown(0);
		c->anyhow = lb_unknown(1);
		bpf_loop(LB_MAX_UPSTREAMS, lb_choose_step, c, 0);
	}
	return c->done ? LB_RUNNING : c->obstacle;
}

/* How many of an upstream's quiet requests have certainly arrived. Before each batch for it. */
static __always_inline void lb_watch_quiet(struct lb_slot *upstream, const struct lb_room *room)
{
	__u64 delivered = upstream->redirected_bytes - room->backlog - room->unacknowledged;

	if (delivered < upstream->mark_bytes)
		return;
	upstream->delivered_quiet = upstream->mark_quiet;
	upstream->mark_bytes = upstream->redirected_bytes;
	upstream->mark_quiet = upstream->quiet;
}

/* Charges client, upstream and backend for requests that are about to be sent. */
static __always_inline void lb_charge_requests(const struct lb_choosing *c, __u32 messages,
					       __u32 expecting)
{
	struct lb_slot *upstream = bpf_map_lookup_elem(&lb_slots, &c->slot);
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &c->backend);

	if (!upstream || !backend)
		return;
	if (!lb_by_id(c->framing))
		lb_mark(c->slot, upstream->sent, expecting);
	lb_watch_quiet(upstream, &c->room);
	upstream->quiet += messages - expecting;
	lb_add(&upstream->sent, expecting);
	lb_add(&c->client->sent, expecting);
	lb_add(&backend->sent, expecting);
	lb_charge(c->turns, c->backend, backend->stride, c->client->pool, messages);
}

#endif
