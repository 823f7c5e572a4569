// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Theory of operation.
 *
 * The kernel's strparser asks lb_parser how long the message at the head of a
 * socket's stream is, waits until it is whole, and hands it to lb_verdict, which
 * sends it on to another socket of the sockmap, leaves it to user space, or
 * drops it. Both programs of one socket run under that socket's lock, so what a
 * slot keeps about itself as a *source* needs no atomics; as a *destination* it
 * is written by any CPU.
 *
 * Facts that the code leans on (each has a test under tests/bpf):
 *  - The context shows the start of the TCP segment, not of the message; where
 *    the message starts stands in the strparser's control block (lb_position).
 *  - A "message" of the strparser may be several protocol messages: one redirect
 *    and one send then carry them all (lb_measure).
 *  - The parser must not change the packet, and reads by bpf_skb_load_bytes:
 *    the linear part is often empty.
 *  - The strparser waits for the rest of some messages without a time limit if it
 *    is told their length early (lb_untimed).
 *  - Redirecting to a dead socket reports success and loses the data, and a
 *    missing key makes the helper return SK_DROP: the verdict looks at the
 *    destination's TCP state and never returns the helper's SK_DROP.
 *  - Softirq programs interrupt those in process context, so per-CPU scratch is
 *    unsafe; scratch lives in the slot. Counters are atomic although per CPU.
 */
#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_loop.h"
#include "lb_maps.h"
#include "lb_marks.h"
#include "lb_pick.h"
#include "lb_position.h"
#include "lb_slot.h"
#include "lb_timer.h"

#define LB_STREAM struct __sk_buff

static __always_inline int lb_load(struct __sk_buff *skb, __u32 offset, void *to, __u32 length)
{
	return bpf_skb_load_bytes(skb, offset, to, length);
}

static __always_inline void lb_loop(__u32 n, long (*step)(__u32, void *), void *context)
{
	bpf_loop(n, step, context, 0);
}

#include "lb_framing.h"

SEC("sk_skb/stream_parser")
int lb_parser(struct __sk_buff *skb)
{
	struct lb_measuring measuring = {
		.stream = skb,
		.total = lb_unknown(0),
		.batch = {
			.length = lb_unknown(0),
			.messages = lb_unknown(0),
			.expecting = lb_unknown(0),
		},
	};
	struct lb_position position;
	struct lb_framing *framing;
	struct lb_marks *marks;
	struct lb_batch batch;
	struct lb_slot *slot;
	__u32 number;

	slot = lb_source(skb, &number);
	if (!slot)
		return -ENOENT;
	framing = bpf_map_lookup_elem(&lb_framings, &slot->framing);
	marks = bpf_map_lookup_elem(&lb_marks, &number);
	if (!framing || !marks)
		return -ENOENT;
	if (lb_position(skb, &position))
		return -EFAULT;

	measuring.framing = framing;
	measuring.window = slot->window;
	measuring.tags = marks->tags;
	measuring.offset = position.offset;
	measuring.available = skb->len - position.offset;
	measuring.limit = slot->batch;
	measuring.from_client = slot->role == LB_ROLE_CLIENT;
	batch = lb_measure(&measuring);
	slot->batched = batch.messages;
	slot->expecting = batch.expecting;
	/* 0, "the header is incomplete", always starts the timer. */
	if (batch.length > (__s64)measuring.available && lb_untimed(skb, batch.length))
		return 0;
	return batch.length;
}

static __always_inline int lb_pass(struct lb_slot *slot, __u32 bytes, enum lb_counter why)
{
	slot->passed_messages += slot->batched;
	slot->passed_bytes += bytes;
	lb_count(why, slot->batched);
	return SK_PASS;
}

struct lb_choosing {
	struct __sk_buff *skb;
	struct lb_framing *framing;
	struct lb_slot *client;
	struct lb_route *route;
	struct lb_turns *turns;
	__u32 excluded;
	__u32 slot; /* of the upstream that the message was redirected to */
	bool done;
};

/* One attempt: pick an upstream, see that it lives, redirect. 1 ends it. */
static long lb_choose_step(__u32 i, void *context)
{
	struct lb_choosing *c = context;
	struct lb_slot *client = c->client;
	struct lb_upstream *reference;
	int picked;

	/* Answers keep their order only while one upstream gives them all. */
	if (c->framing->flags & LB_FIFO && client->sent != client->answered) {
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
	if (!lb_slot_of(c->slot, reference->generation) ||
	    !lb_alive(c->slot, 1U << LB_TCP_ESTABLISHED))
		return 0;
	if (bpf_sk_redirect_map(c->skb, &lb_socks, c->slot, 0) != SK_PASS)
		return 0;
	client->chosen = picked;
	c->done = true;
	return 1;
}

/* A client's messages: to one of its upstreams. */
static __always_inline int lb_request(struct __sk_buff *skb, struct lb_slot *client,
				      __u32 client_number, __u32 bytes)
{
	struct lb_choosing choosing = {
		.skb = skb,
		.client = client,
		.excluded = lb_unknown(0),
	};
	struct lb_framing *framing = bpf_map_lookup_elem(&lb_framings, &client->framing);
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &client_number);
	struct lb_route *route = bpf_map_lookup_elem(&lb_routes, &client_number);
	struct lb_marks *upstream_marks;
	struct lb_backend *backend;
	struct lb_traffic *traffic;
	struct lb_slot *upstream;
	struct lb_turns *turns;
	__u32 zero = 0;

	turns = bpf_map_lookup_elem(&lb_turns, &zero);
	if (*(volatile __u32 *)&client->hold)
		return lb_pass(client, bytes, LB_PASSED_HELD);
	if (!framing || !marks || !route || !turns)
		return lb_pass(client, bytes, LB_PASSED_NO_UPSTREAM);

	choosing.framing = framing;
	choosing.route = route;
	choosing.turns = turns;
	bpf_loop(LB_MAX_UPSTREAMS, lb_choose_step, &choosing, 0);
	if (!choosing.done)
		return lb_pass(client, bytes, LB_PASSED_NO_UPSTREAM);

	/* The message leaves after this program has returned: count it first. */
	upstream = bpf_map_lookup_elem(&lb_slots, &choosing.slot);
	upstream_marks = bpf_map_lookup_elem(&lb_marks, &choosing.slot);
	if (!upstream || !upstream_marks)
		return SK_PASS;
	lb_mark(framing, client, marks, upstream, upstream_marks);
	lb_add(&upstream->redirected_bytes, bytes);
	lb_add(&upstream->sent, client->expecting);
	lb_add(&client->sent, client->expecting);
	backend = bpf_map_lookup_elem(&lb_backends, &upstream->backend);
	if (backend) {
		lb_charge(turns, upstream->backend, backend->stride, client->pool, client->batched);
		lb_add(&backend->sent, client->expecting);
	}
	traffic = bpf_map_lookup_elem(&lb_traffic, &upstream->traffic);
	if (traffic) {
		lb_add(&traffic->requests, client->batched);
		lb_add(&traffic->request_bytes, bytes);
	}
	return SK_PASS;
}

/* A backend's messages: to the client that the upstream belongs to. */
static __always_inline int lb_response(struct __sk_buff *skb, struct lb_slot *upstream,
				       __u32 upstream_number, __u32 bytes)
{
	struct lb_framing *framing = bpf_map_lookup_elem(&lb_framings, &upstream->framing);
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &upstream->backend);
	struct lb_marks *marks = bpf_map_lookup_elem(&lb_marks, &upstream_number);
	__u32 states = 1U << LB_TCP_ESTABLISHED | 1U << LB_TCP_CLOSE_WAIT;
	struct lb_traffic *traffic;
	__u64 outstanding, answered;
	struct lb_slot *client;

	client = lb_slot_of(upstream->client, upstream->client_generation);
	if (!client || !framing || !backend || !marks)
		goto gone;
	outstanding = upstream->sent - upstream->answered;
	if (!upstream->expecting || (framing->flags & LB_FIFO && !outstanding)) {
		lb_count(LB_DROPPED_UNSOLICITED, upstream->batched);
		return SK_DROP;
	}
	if (!lb_alive(upstream->client, states))
		goto gone;
	if (bpf_sk_redirect_map(skb, &lb_socks, upstream->client, 0) != SK_PASS)
		goto gone;

	/* A request may have several responses; it is outstanding until the first. */
	answered = upstream->expecting < outstanding ? upstream->expecting : outstanding;
	lb_measured(framing, upstream, marks);
	lb_add(&upstream->answered, answered);
	lb_add(&client->answered, answered);
	lb_add(&client->redirected_bytes, bytes);
	lb_add(&backend->answered, answered);
	traffic = bpf_map_lookup_elem(&lb_traffic, &upstream->traffic);
	if (traffic) {
		lb_add(&traffic->responses, upstream->batched);
		lb_add(&traffic->response_bytes, bytes);
	}
	return SK_PASS;
gone:
	lb_count(LB_DROPPED_CLIENT_GONE, upstream->batched);
	return SK_DROP;
}

SEC("sk_skb/stream_verdict")
int lb_verdict(struct __sk_buff *skb)
{
	struct lb_position position;
	struct lb_slot *slot;
	__u32 number, bytes;
	int verdict;

	slot = lb_source(skb, &number);
	if (!slot || lb_position(skb, &position)) {
		lb_count(LB_DROPPED_UNKNOWN_SOURCE, 1);
		return SK_DROP;
	}
	bytes = position.length;
	if (slot->role == LB_ROLE_CLIENT)
		verdict = lb_request(skb, slot, number, bytes);
	else
		verdict = lb_response(skb, slot, number, bytes);
	/* User space takes this as "decided", so it comes last. */
	lb_add(&slot->consumed_bytes, bytes);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
