// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Theory of operation.
 *
 * The kernel's strparser asks lb_parser how long the message at the head of a
 * socket's stream is, waits until it is whole, and hands it to lb_verdict, which
 * sends it on to another socket. Both programs of one socket run under that socket's
 * lock, so what a slot keeps about itself as a *source* needs no atomics; as a
 * *destination* it is written by any CPU.
 *
 * Back-pressure. Nothing in the kernel slows a sender down because what it sent
 * waits for somebody else. So the parser looks first whether there is room, and if
 * there is none it *pauses* the source: it answers -EAGAIN in front of a message. The
 * strparser stops there, the bytes stay in the TCP receive queue, which is accounted
 * and closes the window, and the error wakes user space, which puts the socket into
 * lb_sources again when there is room (DataPlane.resume). EAGAIN, because a sender
 * that meets the pending error of a socket takes it for a full buffer and tries again.
 * Only in front of a message: one that has begun to come in would be lost.
 *
 * Messages are accounted for when they are measured, if they are whole then: the
 * verdict follows at once. One that is still coming in is accounted for in its
 * verdict.
 *
 * Facts that the code leans on (each has a test under tests/bpf):
 *  - The context shows the start of the TCP segment, not of the message; where
 *    the message starts stands in the strparser's control block (lb_position).
 *  - A "message" of the strparser may be several protocol messages: one redirect
 *    and one send then carry them all (lb_measure).
 *  - The parser must not change the packet, and reads by bpf_skb_load_bytes:
 *    the linear part is often empty.
 *  - After an error the strparser still offers what the segment holds to the parser:
 *    a pause has to be repeated until user space ends it.
 *  - The strparser waits for the rest of some messages without a time limit if it
 *    is told their length early (lb_untimed).
 *  - Redirecting to a dead socket reports success and loses the data, and a
 *    missing key makes the helper return SK_DROP (lb_room).
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
#include "lb_inflight.h"
#include "lb_choose.h"
#include "lb_direct.h"
#include "lb_judge.h"
#include "lb_shared.h"
#include "lb_rate.h"
#include "lb_refuse.h"
#include "lb_sample.h"
#include "lb_transfer.h"

/* Whether a client lets its responses wait. A global function: the verifier looks at it once. */
__noinline int lb_client_full(__u32 number, __u32 generation)
{
	struct lb_slot *client = lb_slot_of(number, generation);
	struct lb_room room;

	if (!client)
		return false;
	room = lb_room(number, client, LB_CLIENT_STATES);
	return room.alive && lb_full(&room, client);
}

/* The same, of the client that waits for what stands at offset on a shared upstream. */
static __always_inline bool lb_asker_full(struct __sk_buff *skb, struct lb_slot *upstream,
					  struct lb_framing *framing, __u32 offset, __u32 available)
{
	__u32 size = ((framing->window - 1) & 63) + 1;
	struct lb_exchange x = {
		.skb = skb,
		.framing = framing,
		.window = upstream->window,
		.offset = offset,
	};
	struct lb_flight *flight;

	if (available < size || lb_load(skb, offset, upstream->window, size) || lb_find_id(&x, 0))
		return false;
	flight = lb_flight_of(upstream, x.id);
	if (!flight)
		return false;
	upstream->target = flight->client;
	upstream->target_generation = flight->client_generation;
	return lb_client_full(upstream->target, upstream->target_generation);
}

/* The post channel: a header, which is dropped, and the message that it speaks of. */
static __always_inline int lb_post_length(struct lb_slot *post, __u32 available)
{
	if (post->post.length)
		return post->post.length;
	return available < sizeof(struct lb_post) ? 0 : (int)sizeof(struct lb_post);
}

/*
 * Measures what stands at offset, and accounts for whole messages. Gives the length as
 * the parser returns it, or 0 with source->paused set: there is no room. Comes after
 * lb_direct(), if the source is routed; denied is what that says.
 */
static __always_inline int lb_take(struct __sk_buff *skb, struct lb_slot *source, __u32 number,
				   struct lb_framing *framing, __u32 offset, __u32 available,
				   bool begun, bool denied)
{
	struct lb_measuring measuring = {
		.framing = framing,
		.stream = skb,
		.window = source->window,
		.offset = offset,
		.available = available,
		.limit = source->batch,
		.from_client = source->role == LB_ROLE_CLIENT,
		.slot = number,
		.generation = source->generation,
		.backend = source->backend,
		.now = lb_now(),
		.shared = source->role == LB_ROLE_SHARED,
		.target = lb_unknown(0),
		.target_generation = lb_unknown(0),
		.total = lb_unknown(0),
		.batch = {
			.length = lb_unknown(0),
			.messages = lb_unknown(0),
			.expecting = lb_unknown(0),
			.answers = lb_unknown(0),
			.open = lb_unknown(0),
			.errors = lb_unknown(0),
		},
	};
	struct lb_choice choice = {};
	bool limited = lb_limited(source), transfers = false, rules = false;
	enum lb_pause why = LB_RUNNING;
	/* In its place: the stack of 6.1 has no room for a copy. */
	const struct lb_batch *batch = &measuring.batch;
	bool again;

	/* What was decided when it began stands; a new message knows nothing of the one before. */
	if (!source->started)
		source->denied = LB_NOT_DENIED;
	if (measuring.from_client) {
		measuring.target = number;
		transfers = lb_transfers(source, number, framing);
		rules = source->routed & LB_ROUTED_RULES;
		measuring.target_generation = lb_unknown((source->routed ? LB_APART_ROUTED : 0) |
							 (transfers ? LB_APART_TRANSFERS : 0));
		why = lb_choose(number, begun, &choice);
		measuring.slot = choice.slot;
		/* On a shared upstream the verdict notes requests, with ids of the upstream's. */
		measuring.generation = choice.done && !choice.shared ? choice.generation : 0;
		/* 0, if it cannot be decided on yet: that is a header which is incomplete. */
		if (choice.limit < measuring.limit)
			measuring.limit = choice.limit;
	} else if (!begun && measuring.shared) {
		if (lb_asker_full(skb, source, framing, offset, available))
			why = LB_PAUSED_FULL;
	} else if (!begun && lb_client_full(source->client, source->client_generation)) {
		why = LB_PAUSED_FULL;
	}
	/* Others would wait for the answers: who does not read asks no more. */
	if (!begun && choice.shared && lb_client_full(number, source->generation))
		why = LB_PAUSED_FULL;
	if (!begun && *(volatile __u32 *)&source->hold)
		why = LB_PAUSED_HELD;
	if (transfers || rules) {
		if (!source->denied && denied) {
			source->denied = LB_DENIED_RULE;
		} else if (transfers && !source->denied &&
			   lb_is_transfer(skb, number, offset, available)) {
			source->denied = LB_DENIED_TRANSFER;
			measuring.limit = 1;
		}
		if (source->denied == LB_DENIED_TRANSFER || source->denied == LB_DENIED_RULE)
			limited = false;
		/* For the refusal. */
		if (!begun && source->denied && framing->edits &&
		    lb_client_full(number, source->generation))
			why = LB_PAUSED_FULL;
	}
	if (limited && (begun || !why)) {
		why = lb_allow(number, measuring.limit, begun);
		if (source->denied) {
			measuring.generation = 0;
			/* For the refusal. */
			if (!begun && framing->edits && lb_client_full(number, source->generation))
				why = LB_PAUSED_FULL;
		} else if (source->allowed < measuring.limit) {
			measuring.limit = source->allowed;
		}
	}
	if (!begun && why) {
		lb_unreserve(&choice, 0);
		source->paused = why;
		lb_count(LB_PAUSES_FULL + (why - LB_PAUSED_FULL), 1);
		return 0;
	}

	lb_measure(&measuring);
	again = begun && source->batched; /* more of it has come, and perhaps of others */
	source->started = batch->length >= 0 &&
			  (!batch->length || (__u32)batch->length > available);
	source->batched = batch->messages;
	source->expecting = batch->expecting;
	source->answers = batch->answers;
	source->opening = batch->open;
	source->id = batch->id;
	source->target_generation = 0;
	if (framing->flags & LB_HAS_ERROR && !measuring.from_client && batch->expecting)
		lb_judge(source->backend, batch->errors, batch->messages, again);
	if (limited)
		lb_settle(number, source->started ? 0 : batch->messages);
	if (measuring.from_client && choice.done && batch->length > 0 && !source->started &&
	    !source->denied) {
		source->target = choice.slot;
		source->target_generation = choice.generation;
		source->open = batch->open;
		lb_charge_requests(&choice, source, framing, batch->messages, batch->expecting);
	} else {
		lb_unreserve(&choice, 0);
	}
	return batch->length;
}

SEC("sk_skb/stream_parser")
int lb_parser(struct __sk_buff *skb)
{
	struct lb_position position;
	struct lb_framing *framing;
	struct lb_slot *slot;
	__u32 number, available;
	bool denied = false;
	int length;

	slot = lb_source(skb, &number);
	if (!slot)
		return -ENOENT;
	if (lb_position(skb, &position))
		return -EFAULT;
	available = skb->len - position.offset;
	if (slot->role == LB_ROLE_POST)
		return lb_post_length(slot, available);
	if (slot->role == LB_ROLE_CANARY)
		return available;
	if (slot->paused)
		return -EAGAIN;
	framing = bpf_map_lookup_elem(&lb_framings, &slot->framing);
	if (!framing)
		return -ENOENT;

	if (slot->routed)
		denied = lb_direct(skb, number, position.offset, available);
	length = lb_take(skb, slot, number, framing, position.offset, available, slot->started,
			 denied);
	if (slot->paused)
		return -EAGAIN;
	/* 0, "the header is incomplete", always starts the timer. */
	if (length > 0 && slot->started && lb_untimed(skb, length))
		return 0;
	return length;
}

/* A message that came in piece by piece: what the parser does for whole ones. */
static __always_inline void lb_finish_request(struct __sk_buff *skb, struct lb_slot *client,
					      __u32 number, struct lb_framing *framing,
					      const struct lb_position *position)
{
	struct lb_choice choice = {};
	struct lb_measuring measuring = { .framing = framing, .stream = skb };

	if (lb_transfers(client, number, framing) &&
	    lb_is_transfer(skb, number, position->offset, position->length)) {
		client->denied = LB_DENIED_TRANSFER;
		return;
	}
	if (client->routed && lb_direct(skb, number, position->offset, position->length)) {
		client->denied = LB_DENIED_RULE;
		return;
	}
	if (lb_limited(client)) {
		if (client->denied)
			return;
		lb_overdraw(number, client->batched);
	}
	lb_choose(number, 1, &choice);
	if (!choice.done)
		return;
	client->target = choice.slot;
	client->target_generation = choice.generation;
	client->open = client->opening;
	if (lb_by_id(framing) && client->expecting && !choice.shared) {
		measuring.slot = choice.slot;
		measuring.generation = choice.generation;
		measuring.now = lb_now();
		lb_note(&measuring, client->id, position->offset, position->length);
	}
	lb_charge_requests(&choice, client, framing, client->batched, client->expecting);
}

static __always_inline void lb_finish_response(struct __sk_buff *skb, struct lb_slot *upstream,
					       __u32 number, struct lb_framing *framing)
{
	struct lb_measuring measuring = {
		.framing = framing,
		.stream = skb,
		.slot = number,
		.generation = upstream->generation,
		.backend = upstream->backend,
		.now = lb_now(),
	};

	if (!lb_by_id(framing) || !upstream->expecting || upstream->opening)
		return;
	upstream->answers = lb_awaited(&measuring, upstream->id);
	if (!upstream->answers && !(framing->flags & LB_MANY_RESPONSES))
		upstream->expecting = 0;
}

/*
 * A client's messages: to the upstream that was chosen. They have been accounted for:
 * if the upstream was removed meanwhile they are among what was outstanding there.
 */
static __always_inline int lb_request(struct __sk_buff *skb, struct lb_slot *client, __u32 number,
				      const struct lb_position *position)
{
	struct lb_slot *upstream = lb_slot_of(client->target, client->target_generation);
	bool shared = client->route != number;
	enum lb_counter why = LB_PASSED_NO_UPSTREAM;
	__u32 bytes = position->length, row;
	struct lb_traffic *traffic;

	if (!client->target_generation && client->denied) {
		int verdict = lb_refuse(skb, number, position->offset, bytes);

		if (verdict >= 0)
			return verdict;
		why = LB_PASSED_NO_FLIGHT;
		goto pass;
	}
	if (!client->target_generation)
		goto pass;
	if (!upstream) {
		if (shared)
			goto pass;
		goto gone;
	}
	if (shared && lb_exchange_requests(skb, number, position->offset, bytes)) {
		why = LB_PASSED_NO_FLIGHT;
		goto pass;
	}
	/* The message leaves after this program has returned: count it first. */
	lb_add(&upstream->redirected_bytes, bytes);
	if (bpf_sk_redirect_map(skb, &lb_socks, client->target, 0) != SK_PASS)
		goto gone;
	row = client->traffic + upstream->traffic;
	traffic = bpf_map_lookup_elem(&lb_traffic, &row);
	if (traffic) {
		lb_add(&traffic->requests, client->batched);
		lb_add(&traffic->request_bytes, bytes);
	}
	return SK_PASS;
gone:
	lb_count(LB_DROPPED_UPSTREAM_GONE, client->batched - client->expecting);
	return SK_DROP;
pass:
	client->passed_messages += client->batched;
	lb_count(why, client->batched);
	return SK_PASS; /* user space hears of it, and ends the client */
}

/* A backend's messages: to the client that the upstream belongs to. */
static __always_inline int lb_response(struct __sk_buff *skb, struct lb_slot *upstream,
				       __u32 number, struct lb_framing *framing, __u32 bytes)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &upstream->backend);
	__u64 outstanding = upstream->sent - upstream->answered, answered;
	struct lb_traffic *traffic;
	struct lb_slot *client;
	struct lb_room room;
	bool awaited;

	awaited = !(framing->flags & LB_FIFO) || framing->flags & LB_ANY_RESPONSES || outstanding;
	if (!backend || !upstream->expecting || !awaited) {
		lb_count(LB_DROPPED_UNSOLICITED, upstream->batched);
		return SK_DROP;
	}
	if (lb_by_id(framing)) {
		answered = upstream->answers;
	} else {
		/* A request may have several responses; it is outstanding until the first. */
		answered = upstream->expecting < outstanding ? upstream->expecting : outstanding;
		lb_measured(number, upstream->backend, upstream->answered, answered);
	}
	lb_add(&upstream->answered, answered);
	lb_add(&backend->answered, answered);
	client = lb_slot_of(upstream->client, upstream->client_generation);
	if (!client)
		goto gone;
	room = lb_room(upstream->client, client, LB_CLIENT_STATES);
	if (room.alive)
		lb_add(&client->redirected_bytes, bytes);
	/* Second: who sees that all is answered sees what is on its way, too. */
	lb_add(&client->answered, answered);
	if (!room.alive || bpf_sk_redirect_map(skb, &lb_socks, upstream->client, 0) != SK_PASS)
		goto gone;

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

/* The messages of a backend on a shared upstream: to the client that each is for. */
static __always_inline int lb_shared_response(struct __sk_buff *skb, struct lb_slot *upstream,
					      __u32 number, const struct lb_position *position)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &upstream->backend);
	__u32 bytes = position->length, target, row;
	struct lb_traffic *traffic;
	struct lb_slot *client;
	struct lb_room room;

	if (lb_exchange_responses(skb, number, position->offset, bytes) || !backend ||
	    !upstream->answers) {
		lb_count(LB_DROPPED_LATE, upstream->late);
		lb_count(LB_DROPPED_UNSOLICITED, upstream->batched - upstream->late);
		return SK_DROP;
	}
	lb_add(&upstream->answered, upstream->answers);
	lb_add(&backend->answered, upstream->answers);
	target = upstream->target;
	client = lb_slot_of(target, upstream->target_generation);
	if (!client)
		goto gone;
	room = lb_room(target, client, LB_CLIENT_STATES);
	if (room.alive)
		lb_add(&client->redirected_bytes, bytes);
	/* Second: who sees that all is answered sees what is on its way, too. */
	lb_add(&client->answered, upstream->answers);
	if (!room.alive || bpf_sk_redirect_map(skb, &lb_socks, target, 0) != SK_PASS)
		goto gone;
	row = client->traffic + upstream->traffic;
	traffic = bpf_map_lookup_elem(&lb_traffic, &row);
	if (traffic) {
		lb_add(&traffic->responses, upstream->batched);
		lb_add(&traffic->response_bytes, bytes);
	}
	return SK_PASS;
gone:
	lb_count(LB_DROPPED_CLIENT_GONE, upstream->batched);
	return SK_DROP;
}

/* An answer of the balancer's own, to the client that a header names. */
static __always_inline int lb_reply(struct __sk_buff *skb, struct lb_slot *post, __u32 bytes)
{
	struct lb_slot *client = lb_slot_of(post->post.slot, post->post.generation);
	struct lb_room room = {};

	if (client)
		room = lb_room(post->post.slot, client, LB_CLIENT_STATES);
	if (client && room.alive) {
		lb_add(&client->redirected_bytes, bytes);
		if (bpf_sk_redirect_map(skb, &lb_socks, post->post.slot, 0) == SK_PASS) {
			lb_count(LB_REPLIES, 1);
			return SK_PASS;
		}
	}
	lb_count(LB_DROPPED_CLIENT_GONE, 1);
	return SK_DROP;
}

/* A message of a source that user space has taken over. */
static __always_inline int lb_forward(struct __sk_buff *skb, struct lb_slot *post,
				      const struct lb_position *position)
{
	__u32 number = post->post.slot, bytes = position->length;
	struct lb_slot *source = lb_slot_of(number, post->post.generation);
	struct lb_framing *framing;
	bool denied = false;
	__u64 passed;
	int verdict;

	framing = source ? bpf_map_lookup_elem(&lb_framings, &source->framing) : NULL;
	if (!framing) {
		lb_count(LB_DROPPED_CLIENT_GONE, 1);
		return SK_DROP;
	}
	if (source->routed)
		denied = lb_direct(skb, number, position->offset, bytes);
	lb_take(skb, source, number, framing, position->offset, bytes, true, denied);
	source->started = 0;
	passed = source->passed_messages;
	if (source->role == LB_ROLE_CLIENT)
		verdict = lb_request(skb, source, number, position);
	else if (source->role == LB_ROLE_SHARED)
		verdict = lb_shared_response(skb, source, number, position);
	else
		verdict = lb_response(skb, source, number, framing, bytes);
	if (source->passed_messages != passed)
		verdict = SK_DROP; /* it was counted as passed: user space ends the client */
	lb_count(LB_FORWARDED, 1);
	lb_add(&source->consumed_bytes, bytes);
	return verdict;
}

static __always_inline int lb_post_verdict(struct __sk_buff *skb, struct lb_slot *post,
					   const struct lb_position *position)
{
	struct lb_post header;

	if (!post->post.length) {
		if (bpf_skb_load_bytes(skb, position->offset, &header, sizeof(header)))
			return SK_DROP;
		if (header.kind == LB_POST_CHARGE) {
			lb_charge_rates(header.slot, header.generation);
			return SK_DROP;
		}
		post->post = header;
		return SK_DROP;
	}
	post->post.length = 0;
	if (post->post.kind == LB_POST_REPLY)
		return lb_reply(skb, post, position->length);
	return lb_forward(skb, post, position);
}

SEC("sk_skb/stream_verdict")
int lb_verdict(struct __sk_buff *skb)
{
	struct lb_position position;
	struct lb_framing *framing;
	struct lb_slot *slot;
	int verdict = SK_DROP;
	__u32 number;
	bool started;

	slot = lb_source(skb, &number);
	framing = slot ? bpf_map_lookup_elem(&lb_framings, &slot->framing) : NULL;
	if (!framing || lb_position(skb, &position)) {
		lb_count(LB_DROPPED_UNKNOWN_SOURCE, 1);
		return SK_DROP;
	}
	started = slot->started;
	slot->started = 0;
	if (slot->role == LB_ROLE_CLIENT) {
		if (started)
			lb_finish_request(skb, slot, number, framing, &position);
		slot->sample = lb_tapped() ? lb_sample(skb, number, position.offset) : 0;
		verdict = lb_request(skb, slot, number, &position);
	} else if (slot->role == LB_ROLE_SHARED) {
		verdict = lb_shared_response(skb, slot, number, &position);
	} else if (slot->role == LB_ROLE_UPSTREAM) {
		if (started)
			lb_finish_response(skb, slot, number, framing);
		verdict = lb_response(skb, slot, number, framing, position.length);
	} else if (slot->role == LB_ROLE_POST) {
		verdict = lb_post_verdict(skb, slot, &position);
	}
	/* User space takes this as "decided", so it comes last. */
	lb_add(&slot->consumed_bytes, position.length);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
