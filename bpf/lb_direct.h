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
	};

	return client ? lb_place(&message, number, client->pool) : 0;
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

	if (m->target_generation & LB_APART_TRANSFERS &&
	    lb_is_transfer(m->stream, client, offset, length))
		return 0;
	if (!(m->target_generation & LB_APART_ROUTED))
		return 1;
	routing = bpf_map_lookup_elem(&lb_routing, &client);
	if (!routing)
		return 0;
	return !((lb_decide(m->stream, client, offset, length, length) ^ routing->bound) &
		 routing->bound_mask);
}

/*
 * Decides on what stands at the head of the stream of the client in a slot, before
 * lb_choose(), which follows routing->decision; 0: it is no message.
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
	routing->decision =
		seen < 0 ? 0 : lb_decide(skb, number, offset, seen & LB_MAX_LENGTH, available);
	return 0;
}

#endif
