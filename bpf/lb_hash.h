/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Hashing: a message's key, and whose messages with such a key are.
 *
 * The key's hash gives a place in the pool's table (lb/maglev.py), and the place a
 * member of the pool. The table stays what it is when a backend goes down, or has no
 * upstream here, or has more than its share outstanding: other places are tried then,
 * always in the same order, so that only its own keys move, each always to the same.
 *
 * lb/routing.py has the same in Python; the tests compare both.
 */
#ifndef LB_HASH_H
#define LB_HASH_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_decide.h"
#include "lb_loop.h"
#include "lb_maps.h"
#include "lb_pick.h"

enum lb_hash_limit {
	/* Of the places tried. With one member of 1000 up, so many are in vain once in 60. */
	LB_WALK = 4096,
	LB_JUMP = 30011, /* lb/maglev.py */
	LB_LOAD_UNIT = 1024,
};

static const __u64 LB_PRIME = 0x9e3779b97f4a7c15;

/* Murmur's finalizer: each bit of the result depends on all bits. */
static __always_inline __u64 lb_mix(__u64 hash)
{
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccd;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53;
	return hash ^ hash >> 33;
}

/* Eight bytes at once: A to Z become a to z. Lengths of labels are below both. */
static __always_inline __u64 lb_fold(__u64 word)
{
	const __u64 ones = 0x0101010101010101;
	__u64 low = word & 0x7f * ones;
	__u64 from_a = low + (0x80 - 'A') * ones, above_z = low + (0x7f - 'Z') * ones;
	__u64 upper = (from_a ^ above_z) & ~word & 0x80 * ones;

	return word | upper >> 2;
}

static long lb_hash_step(__u32 i, void *context)
{
	struct lb_message *m = context;
	__u32 size = m->bytes < 8 ? m->bytes : 8;
	__u64 word = 0;

	(void)i;
	/* Less one: see lb_inflight.h. */
	size -= 1;
	asm volatile("" : "+r"(size));
	if (size > 7 || bpf_skb_load_bytes(m->skb, m->offset + m->at, &word, size + 1))
		return 1;
	if (m->how)
		word = lb_fold(word);
	m->hash = (m->hash ^ word) * LB_PRIME;
	m->hash ^= m->hash >> 32;
	m->at += 8;
	m->bytes -= size + 1;
	return !m->bytes;
}

/* The hash of what is looked at. */
static __always_inline __u64 lb_hash_of(struct lb_message *m, __u32 fold)
{
	m->hash = lb_unknown(m->bytes);
	m->at = lb_unknown(m->at);
	m->bytes = lb_unknown(m->bytes);
	m->how = fold;
	bpf_loop((LB_MAX_KEY + 7) / 8, lb_hash_step, m, 0);
	return lb_mix(m->hash);
}

/* Looks at the bytes that a message is hashed by. */
static __always_inline enum lb_span lb_look_at_key(struct lb_message *m, const struct lb_hash *hash)
{
	if (hash->key == LB_KEY_DNS_NAME)
		return lb_look_at_name(m);
	if (hash->key == LB_KEY_STRING)
		return lb_look_at_string(m, hash->offset, hash->width, hash->little);
	return lb_look_at(m, hash->offset, hash->width);
}

/* Where in a pool a message goes, or LB_INCOMPLETE; 0: there is no table for it. */
static __always_inline __u64 lb_place(struct lb_message *m, __u32 pool)
{
	struct lb_hash *hash = bpf_map_lookup_elem(&lb_hashes, &pool);
	struct lb_table *table;
	__u64 value, place;

	if (!hash || hash->key == LB_KEY_NONE)
		return 0;
	if (hash->key == LB_KEY_CLIENT) {
		value = m->routing ? m->routing->hash : 0;
	} else {
		if (lb_look_at_key(m, hash) == LB_SPAN_MISSING)
			return LB_INCOMPLETE;
		value = lb_hash_of(m, hash->key == LB_KEY_DNS_NAME);
	}
	pool = hash->table;
	table = bpf_map_lookup_elem(&lb_tables, &pool);
	if (!table)
		return 0;
	place = (value >> 32) * LB_TABLE >> 32;
	return lb_at_place(place, table->members[place & (LB_MAX_TABLE - 1)]);
}

struct lb_walk {
	struct lb_route *route;
	struct lb_table *table;
	__u64 outstanding, weights; /* of all members that are there */
	__u64 best_load;
	__u32 max_load;
	__u32 place;
	__u32 excluded; /* a bit for each upstream */
	__u32 members; /* that are there: a bit for each */
	__u32 member; /* that was found; LB_MAX_UPSTREAMS: none */
	__s32 best; /* of its upstreams */
};

static __always_inline __u64 lb_outstanding(const struct lb_backend *backend)
{
	__s64 outstanding = backend->sent - backend->answered - backend->written_off;

	return outstanding > 0 ? outstanding : 0; /* it was answered between two of these reads */
}

/* Whether an upstream may be chosen. */
static __always_inline struct lb_upstream *lb_candidate(const struct lb_walk *w, __u32 i)
{
	struct lb_upstream *upstream = &w->route->upstreams[i & (LB_MAX_UPSTREAMS - 1)];

	return upstream->generation && !(w->excluded & (1U << (i & 31))) ? upstream : NULL;
}

static long lb_members_step(__u32 i, void *context)
{
	struct lb_walk *w = context;
	struct lb_upstream *upstream = lb_candidate(w, i);
	struct lb_backend *backend;
	__u32 number, bit;

	if (!upstream)
		return 0;
	number = upstream->backend;
	bit = 1U << (upstream->member & 31);
	/* A client with rules may have upstreams to other pools, whose members have the same
	 * numbers. */
	if (w->table->backends[upstream->member & (LB_MAX_UPSTREAMS - 1)] != number)
		return 0;
	backend = bpf_map_lookup_elem(&lb_backends, &number);
	if (!backend || !backend->weight || w->members & bit)
		return 0;
	w->members |= bit;
	w->weights += backend->weight;
	w->outstanding += lb_outstanding(backend);
	return 0;
}

/*
 * Whether a backend has its share of what is outstanding already: with the message to
 * come not more than max_load times the mean, rounded up (Mirrokni, Thorup and
 * Zadimoghaddam: Consistent Hashing with Bounded Loads, 2018).
 */
static __always_inline bool lb_overloaded(const struct lb_walk *w, __u32 number)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &number);

	if (!backend)
		return true;
	return lb_outstanding(backend) * w->weights * LB_LOAD_UNIT >=
	       (w->outstanding + 1) * backend->weight * w->max_load;
}

static long lb_walk_step(__u32 i, void *context)
{
	struct lb_walk *w = context;
	__u32 member = w->table->members[w->place & (LB_MAX_TABLE - 1)] & (LB_MAX_UPSTREAMS - 1);

	/* Places side by side are not independent: all steps through a table are the same. */
	w->place = ((__u64)w->place * LB_JUMP + i + 1) % LB_TABLE;
	if (!(w->members & (1U << member)))
		return 0;
	if (w->max_load && lb_overloaded(w, w->table->backends[member]))
		return 0;
	w->member = member;
	return 1;
}

/* Of the member's upstreams, if clients share several, the one with the fewest requests. */
static long lb_member_step(__u32 i, void *context)
{
	struct lb_walk *w = context;
	struct lb_upstream *upstream = lb_candidate(w, i);
	__u64 load;

	if (!upstream || upstream->member != w->member ||
	    upstream->backend != w->table->backends[w->member & (LB_MAX_UPSTREAMS - 1)])
		return 0;
	load = lb_load_of(upstream);
	if (w->best >= 0 && load >= w->best_load)
		return 0;
	w->best = i;
	w->best_load = load;
	return 0;
}

/*
 * Index in the client's route of who gets the message at its head, by the decision for
 * it, or -1 if there is nobody whom the table names; excluded has a bit for each that
 * does not. A function of its own, as lb_pick() is.
 */
__noinline int lb_pick_hashed(__u32 number, __u32 excluded)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_routing *routing = bpf_map_lookup_elem(&lb_routing, &number);
	struct lb_walk w = {
		.outstanding = lb_unknown(0),
		.weights = lb_unknown(0),
		.best_load = lb_unknown(0),
		.excluded = excluded,
		.members = lb_unknown(0),
		.member = lb_unknown(LB_MAX_UPSTREAMS),
		.best = lb_unknown(-1),
	};
	struct lb_hash *hash;
	__u32 key;

	if (!client || !routing)
		return -1;
	routing->bound = routing->decision;
	routing->bound_mask = LB_SAME;
	key = client->to_pool;
	hash = bpf_map_lookup_elem(&lb_hashes, &key);
	if (!hash || !lb_has_place(routing->decision))
		return -1;
	w.place = lb_unknown(lb_place_of(routing->decision));
	w.max_load = hash->max_load;
	key = hash->table;
	w.table = bpf_map_lookup_elem(&lb_tables, &key);
	key = client->to_route;
	w.route = bpf_map_lookup_elem(&lb_routes, &key);
	if (!w.table || !w.route)
		return -1;
	bpf_loop(LB_MAX_UPSTREAMS, lb_members_step, &w, 0);
	bpf_loop(LB_WALK, lb_walk_step, &w, 0);
	bpf_loop(LB_MAX_UPSTREAMS, lb_member_step, &w, 0);
	if (w.member == lb_member_of(routing->decision))
		routing->bound_mask = LB_SAME_MEMBER;
	return w.best;
}

#endif
