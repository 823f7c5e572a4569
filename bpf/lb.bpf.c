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
 *  - Redirecting to a dead socket reports success and loses the data, and a
 *    missing key makes the helper return SK_DROP: the verdict looks at the
 *    destination's TCP state and never returns the helper's SK_DROP.
 *  - Softirq programs interrupt those in process context, so per-CPU scratch is
 *    unsafe; scratch lives in the slot. Counters are atomic although per CPU.
 */
#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_maps.h"

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
#include "lb_histogram.h"

enum {
	LB_LAG = 64 * LB_STRIDE, /* how far a backend may fall behind its turns */
	LB_TRIES = 8, /* upstreams that may turn out dead for one message */
	LB_TCP_ESTABLISHED = 1,
	LB_TCP_CLOSE_WAIT = 8,
};

/* Of the kernel's types only what is needed; offsets are relocated at load. */
struct strp_msg {
	int full_len;
	int offset;
} __attribute__((preserve_access_index));

struct _strp_msg {
	struct strp_msg strp;
} __attribute__((preserve_access_index));

struct sk_skb_cb {
	struct _strp_msg strp;
} __attribute__((preserve_access_index));

struct sk_buff {
	char cb[48];
} __attribute__((preserve_access_index));

struct lb_position {
	__u32 length; /* in the verdict; not set in the parser */
	__u32 offset;
};

/* Where in the packet the message starts. */
static __always_inline struct lb_position lb_position(struct __sk_buff *skb)
{
	struct lb_position position = {};
	struct {
		int full_len;
		int offset;
	} message;

	/* bpf_cast_to_kern_ctx() would do, but 6.1 does not have it. */
	if (!bpf_probe_read_kernel(&message, sizeof(message),
				   (void *)skb + bpf_core_field_offset(struct sk_buff, cb) +
					   bpf_core_field_offset(struct sk_skb_cb, strp))) {
		position.length = message.full_len;
		position.offset = message.offset;
	}
	return position;
}

static __always_inline void lb_add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

/* A function of its own: so the enum reaches the BTF. */
static __noinline int lb_count(enum lb_counter which, __u32 messages)
{
	__u32 key = which;
	__u64 *counter = bpf_map_lookup_elem(&lb_counters, &key);

	if (counter)
		lb_add(counter, messages);
	return 0;
}

/* The slot of the socket that the packet arrived on, or NULL. */
static __always_inline struct lb_slot *lb_source(struct __sk_buff *skb, __u32 *number)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct lb_conn *conn = bpf_map_lookup_elem(&lb_conns, &cookie);
	struct lb_slot *slot;

	if (!conn)
		return NULL;
	*number = conn->slot;
	slot = bpf_map_lookup_elem(&lb_slots, number);
	if (!slot || slot->generation != conn->generation)
		return NULL;
	return slot;
}

/* The slot that a reference means, or NULL when the slot has moved on. */
static __always_inline struct lb_slot *lb_slot_of(__u32 number, __u32 generation)
{
	struct lb_slot *slot = bpf_map_lookup_elem(&lb_slots, &number);

	if (!slot || !generation || *(volatile __u32 *)&slot->generation != generation)
		return NULL;
	return slot;
}

/* Whether the socket in a slot is in one of the TCP states (a bit for each). */
static __always_inline bool lb_alive(__u32 number, __u32 states)
{
	struct bpf_sock *sock = bpf_map_lookup_elem(&lb_socks, &number);
	__u32 state;

	if (!sock)
		return false;
	state = sock->state;
	bpf_sk_release(sock);
	return states & (1U << (state & 31));
}

SEC("sk_skb/stream_parser")
int lb_parser(struct __sk_buff *skb)
{
	struct lb_measuring measuring = { .stream = skb };
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

	measuring.framing = framing;
	measuring.window = slot->window;
	measuring.tags = marks->tags;
	measuring.offset = lb_position(skb).offset;
	measuring.available = skb->len - measuring.offset;
	measuring.limit = slot->batch;
	measuring.from_client = slot->role == LB_ROLE_CLIENT;
	batch = lb_measure(&measuring);
	slot->batched = batch.messages;
	slot->expecting = batch.expecting;
	return batch.length;
}

static __always_inline __u32 lb_now(void)
{
	/* Never 0, which marks a free entry. */
	return (__u32)(bpf_ktime_get_ns() / 1000) | 1;
}

/* Tag of the i-th message of a batch: its id, or its number where order counts. */
static __always_inline bool lb_by_id(const struct lb_framing *framing)
{
	return framing->flags & LB_HAS_ID && !(framing->flags & LB_FIFO);
}

struct lb_marking {
	const __u32 *tags; /* NULL: first, first + 1, ... */
	__u64 *times;
	struct lb_duration *duration;
	__u32 first;
	__u32 now;
};

static long lb_mark_step(__u32 i, void *context)
{
	struct lb_marking *m = context;
	__u32 tag = m->tags ? m->tags[i & (LB_MAX_BATCH - 1)] : m->first + i;

	m->times[tag & (LB_MARKS - 1)] = (__u64)tag << 32 | m->now;
	return 0;
}

static long lb_measured_step(__u32 i, void *context)
{
	struct lb_marking *m = context;
	__u32 tag = m->tags ? m->tags[i & (LB_MAX_BATCH - 1)] : m->first + i;
	__u64 *time = &m->times[tag & (LB_MARKS - 1)];
	__u32 us = m->now - (__u32)*time;

	if (!*time || *time >> 32 != tag)
		return 0;
	*time = 0;
	lb_add(&m->duration->buckets[lb_bucket(us) & (LB_BUCKETS - 1)], 1);
	lb_add(&m->duration->sum, us);
	return 0;
}

/*
 * Remembers when the requests of a batch left for an upstream: by id, or by
 * their order where the framing has no id or keeps the order. A request that
 * finds its entry taken (more than LB_MARKS in flight) replaces the older one,
 * whose response is then not measured.
 */
static __always_inline void lb_mark(const struct lb_framing *framing, struct lb_slot *client,
				    struct lb_marks *from, struct lb_slot *upstream,
				    struct lb_marks *to)
{
	struct lb_marking marking = {
		.tags = lb_by_id(framing) ? from->tags : NULL,
		.times = to->times,
		.first = upstream->sent,
		.now = lb_now(),
	};

	bpf_loop(client->expecting, lb_mark_step, &marking, 0);
}

static __always_inline void lb_measured(const struct lb_framing *framing, struct lb_slot *upstream,
					struct lb_marks *marks)
{
	struct lb_marking marking = {
		.tags = lb_by_id(framing) ? marks->tags : NULL,
		.times = marks->times,
		.duration = bpf_map_lookup_elem(&lb_durations, &upstream->backend),
		.first = upstream->answered,
		.now = lb_now(),
	};

	if (marking.duration)
		bpf_loop(upstream->expecting, lb_measured_step, &marking, 0);
}

struct lb_picking {
	struct lb_route *route;
	struct lb_turns *turns;
	__u64 floor;
	__u64 best_score, best_time;
	__u64 weights; /* of the candidates so far */
	__u32 balance;
	__u32 excluded; /* a bit for each upstream */
	__s32 best;
};

static long lb_pick_step(__u32 i, void *context)
{
	struct lb_picking *p = context;
	struct lb_upstream *upstream = &p->route->upstreams[i & (LB_MAX_UPSTREAMS - 1)];
	__u32 number = upstream->backend;
	struct lb_backend *backend;
	__u64 score = 0, time;

	if (!upstream->generation || p->excluded & (1U << (i & 31)))
		return 0;
	backend = bpf_map_lookup_elem(&lb_backends, &number);
	if (!backend || !backend->weight)
		return 0;
	time = p->turns->times[number & (LB_MAX_BACKENDS - 1)];
	if (time < p->floor)
		time = p->floor;
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
	return 0;
}

/* Index in the client's route of who gets its next message, or -1. */
static __always_inline int lb_pick(struct lb_slot *client, struct lb_route *route,
				   struct lb_turns *turns, __u32 excluded)
{
	struct lb_pool *pool = bpf_map_lookup_elem(&lb_pools, &client->pool);
	struct lb_picking picking = {
		.route = route,
		.turns = turns,
		.floor = turns->floor[client->pool & (LB_MAX_POOLS - 1)],
		.excluded = excluded,
		.best = -1,
	};

	if (!pool)
		return -1;
	/* A backend without turns for a while must not get them all at once. */
	picking.floor = picking.floor > LB_LAG ? picking.floor - LB_LAG : 0;
	picking.balance = pool->balance;
	bpf_loop(LB_MAX_UPSTREAMS, lb_pick_step, &picking, 0);
	return picking.best;
}

/* Charges a backend for the messages that it gets. */
static __always_inline void lb_charge(struct lb_turns *turns, __u32 number, __u32 stride,
				      __u32 pool, __u32 messages)
{
	__u64 *time = &turns->times[number & (LB_MAX_BACKENDS - 1)];
	__u64 *floor = &turns->floor[pool & (LB_MAX_POOLS - 1)];

	if (*floor > LB_LAG && *time < *floor - LB_LAG)
		*time = *floor - LB_LAG;
	if (*time > *floor)
		*floor = *time;
	*time += (__u64)messages * stride;
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
	struct lb_choosing choosing = { .skb = skb, .client = client };
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
	bpf_loop(LB_TRIES, lb_choose_step, &choosing, 0);
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
	struct lb_slot *slot;
	__u32 number, bytes;
	int verdict;

	slot = lb_source(skb, &number);
	if (!slot) {
		lb_count(LB_DROPPED_UNKNOWN_SOURCE, 1);
		return SK_DROP;
	}
	bytes = lb_position(skb).length;
	if (slot->role == LB_ROLE_CLIENT)
		verdict = lb_request(skb, slot, number, bytes);
	else
		verdict = lb_response(skb, slot, number, bytes);
	/* User space takes this as "decided", so it comes last. */
	lb_add(&slot->consumed_bytes, bytes);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
