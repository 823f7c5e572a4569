/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The walk of the verdict over a batch on a shared upstream: ids are exchanged, requests noted. */
#ifndef LB_SHARED_H
#define LB_SHARED_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_flight.h"
#include "lb_framing.h"
#include "lb_inflight.h"
#include "lb_loop.h"
#include "lb_maps.h"
#include "lb_marks.h"
#include "lb_tap.h"

enum {
	LB_PULL = 16384, /* bytes that are copied without a thought */
};

struct lb_exchange {
	struct lb_framing *framing;
	struct __sk_buff *skb;
	struct lb_slot *upstream;
	__u8 *window;
	__u64 ids; /* a mask */
	__u64 id; /* of the message at offset, and where it stands */
	__u32 id_at;
	__u32 offset;
	__u32 end;
	__u32 number; /* of the upstream */
	__u32 now;
	/* requests: who sends; responses: who gets them, found */
	__u32 client;
	__u32 client_generation;
	__u32 answers; /* responses that a client waits for */
	__u32 late; /* responses to requests that were given up */
	__u32 failed;
	__u32 sample; /* of the next request, see lb_slot */
};

/* Finds the id of the message in the window; nonzero if it has none. */
static __always_inline int lb_find_id(struct lb_exchange *x, __u32 from_client)
{
	const struct lb_framing *framing = x->framing;
	__s32 at = lb_id_place(framing, (const struct lb_window *)x->window, from_client);
	__u64 raw = 0;

	/* 1 to 8: a form that the verifier of 6.1 understands. */
	if (at < 0 || lb_load(x->skb, x->offset + at, &raw, ((framing->id_width - 1) & 7) + 1))
		return 1;
	x->id_at = x->offset + at;
	x->id = lb_id_value(framing, raw);
	return 0;
}

/* Puts another id in its place. */
static __always_inline int lb_put_id(struct lb_exchange *x, __u64 id)
{
	__u32 at = x->id_at, shift = x->framing->id.shift & 63;
	__u64 raw = x->framing->id.little ? id : __builtin_bswap64(id << shift);

	if (shift == 48)
		return bpf_skb_store_bytes(x->skb, at, &raw, 2, 0);
	if (shift == 32)
		return bpf_skb_store_bytes(x->skb, at, &raw, 4, 0);
	return bpf_skb_store_bytes(x->skb, at, &raw, 8, 0);
}

/* Reads the message at offset into the window; its length, or 0 at the end. */
static __always_inline __u32 lb_read(struct lb_exchange *x)
{
	__u32 size = ((x->framing->window - 1) & 63) + 1;
	__s64 length;

	if (x->offset >= x->end || lb_load(x->skb, x->offset, x->window, size))
		return 0;
	length = lb_length(x->framing, x->window);
	return length > 0 ? length : 0;
}

static long lb_exchange_request_step(__u32 __attribute__((unused)) i, void *context)
{
	struct lb_exchange *x = context;
	const struct lb_framing *framing = x->framing;
	struct lb_taking taking = { .upstream = x->upstream, .ids = x->ids };
	__u32 length = lb_read(x);
	struct lb_measuring noting = {
		.framing = framing,
		.stream = x->skb,
		.slot = x->number,
		.generation = x->upstream->generation,
	};

	if (!length)
		return 1;
	if (lb_quiet(framing, x->window))
		goto next;
	if (lb_find_id(x, 1)) {
		x->failed = 1;
		return 1;
	}
	bpf_loop(x->upstream->flight_mask + 1, lb_take_flight_step, &taking, 0);
	if (!taking.flight) {
		x->failed = 1;
		return 1;
	}
	taking.flight->original = x->id;
	taking.flight->client = x->client;
	taking.flight->client_generation = x->client_generation;
	taking.flight->time = x->now;
	taking.flight->sample = x->sample;
	x->sample = 0;
	if (framing->flags & LB_KEEP_HEADS)
		lb_keep_head(&noting, taking.id, x->offset, length);
	if (lb_put_id(x, taking.id)) {
		x->failed = 1;
		return 1;
	}
next:
	x->offset += length;
	return 0;
}

static long lb_exchange_response_step(__u32 __attribute__((unused)) i, void *context)
{
	struct lb_exchange *x = context;
	const struct lb_framing *framing = x->framing;
	__u32 length = lb_read(x);
	struct lb_flight *flight;
	__u64 id;

	if (!length)
		return 1;
	if (framing->flags & LB_HAS_RESPONSE && !lb_matches(x->window, &framing->response))
		goto next;
	if (lb_find_id(x, 0))
		goto next;
	id = x->id;
	flight = lb_flight_of(x->upstream, id);
	if (!flight)
		goto next;
	if (lb_put_id(x, flight->original)) {
		x->failed = 1; /* no memory: the request is given up in time, and its client told */
		return 1;
	}
	if (lb_given_up(flight)) {
		x->late++;
	} else {
		x->client = flight->client;
		x->client_generation = flight->client_generation;
		x->answers++;
		lb_took(x->upstream->backend, x->now - flight->time);
		if (flight->sample)
			lb_answered(flight->sample);
	}
	if (framing->flags & LB_KEEP_HEADS)
		lb_drop_head(x->number, x->upstream->generation, id);
	/* Nothing of the flight is read after this. */
	__sync_lock_test_and_set(&flight->state, LB_FLIGHT_FREE);
next:
	x->offset += length;
	return 0;
}

/* One copy instead of one for each message, where bytes all over the packet change; false: no
 * memory. */
static __always_inline bool lb_pull(struct lb_exchange *x, __u32 messages)
{
	return messages == 1 || x->end > LB_PULL || !bpf_skb_pull_data(x->skb, x->end);
}

/* What an exchange is made of; 0 if a slot is gone. The verifier looks at it once, as a global
 * function. */
static __always_inline bool lb_prepare(struct lb_exchange *x, struct lb_slot *source,
				       __u32 upstream, __u32 messages)
{
	x->upstream = bpf_map_lookup_elem(&lb_slots, &upstream);
	x->framing = bpf_map_lookup_elem(&lb_framings, &source->framing);
	if (!x->upstream || !x->framing)
		return false;
	x->number = upstream;
	x->window = source->window;
	x->ids = ~0ULL >> (x->framing->id.shift & 63);
	x->now = lb_now();
	return lb_pull(x, messages);
}

/* The batch of the client in a slot, to the upstream that was chosen; nonzero if it cannot be sent.
 */
__noinline int lb_exchange_requests(struct __sk_buff *skb, __u32 number, __u32 offset, __u32 length)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_exchange x = {
		.skb = skb,
		.offset = lb_unknown(offset),
		.end = offset + length,
		.client = number,
		.failed = lb_unknown(0),
	};

	if (!client || !lb_prepare(&x, client, client->target, client->batched))
		return 1;
	x.client_generation = client->generation;
	x.sample = client->sample;
	bpf_loop(LB_MAX_BATCH, lb_exchange_request_step, &x, 0);
	return x.failed;
}

/*
 * The batch of the shared upstream in a slot, to the client that its target becomes;
 * answers says how many responses are awaited, late how many not any more.
 */
__noinline int lb_exchange_responses(struct __sk_buff *skb, __u32 number, __u32 offset,
				     __u32 length)
{
	struct lb_slot *upstream = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_exchange x = {
		.skb = skb,
		.offset = lb_unknown(offset),
		.end = offset + length,
		.client = lb_unknown(0),
		.client_generation = lb_unknown(0),
		.answers = lb_unknown(0),
		.late = lb_unknown(0),
		.failed = lb_unknown(0),
	};

	if (!upstream || !lb_prepare(&x, upstream, number, upstream->batched))
		return 1;
	bpf_loop(LB_MAX_BATCH, lb_exchange_response_step, &x, 0);
	upstream->target = x.client;
	upstream->target_generation = x.client_generation;
	upstream->answers = x.answers;
	upstream->late = x.late;
	return x.failed;
}

#endif
