/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Requests on a shared upstream.
 *
 * Clients choose their ids without knowing of each other, so each request gets an id
 * of the upstream's own on its way to the backend, and its response the client's on
 * its way back. The ids of an upstream count up (cursor); their low bits are the place
 * in the upstream's table, the others tell apart who had the place before. A place is
 * free again when the response has come, never earlier: an id is not used twice while
 * an answer to it may still be on its way, also when nobody waits for that any more.
 */
#ifndef LB_FLIGHT_H
#define LB_FLIGHT_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_maps.h"

/* The request that an id of the upstream's stands for, or NULL if there is none. */
static __always_inline struct lb_flight *lb_flight_of(const struct lb_slot *upstream, __u64 id)
{
	__u32 place = upstream->flights + ((__u32)id & upstream->flight_mask);
	struct lb_flight *flight = bpf_map_lookup_elem(&lb_flights, &place);

	if (!flight || flight->state == LB_FLIGHT_FREE || flight->id != id)
		return NULL;
	return flight;
}

/* Whether user space has given the request up: its client has been told. */
static __always_inline bool lb_given_up(const struct lb_flight *flight)
{
	return *(volatile __u64 *)&flight->given_up == flight->id + 1;
}

struct lb_taking {
	struct lb_slot *upstream;
	__u64 ids; /* a mask */
	struct lb_flight *flight; /* found */
	__u64 id;
};

static long lb_take_flight_step(__u32 __attribute__((unused)) i, void *context)
{
	struct lb_taking *t = context;
	struct lb_flight *flight;
	__u64 id = __sync_fetch_and_add(&t->upstream->cursor, 1) & t->ids;
	__u32 place = t->upstream->flights + ((__u32)id & t->upstream->flight_mask);

	flight = bpf_map_lookup_elem(&lb_flights, &place);
	if (!flight)
		return 1;
	if (__sync_val_compare_and_swap(&flight->state, LB_FLIGHT_FREE, LB_FLIGHT_TAKEN) !=
	    LB_FLIGHT_FREE)
		return 0;
	flight->id = id;
	t->id = id;
	t->flight = flight;
	return 1;
}

/*
 * Requests of a shared upstream are limited exactly: who wants to send reserves first.
 * Gives how many of the requests that are wanted may go.
 */
static __always_inline __u32 lb_reserve(struct lb_slot *upstream, __u32 most, __u32 wanted)
{
	__u64 before = __sync_fetch_and_add(&upstream->sent, wanted);
	__s64 room = (__s64)most - (__s64)(before - *(volatile __u64 *)&upstream->answered -
					   *(volatile __u64 *)&upstream->written_off);
	__u32 granted = wanted;

	if (room < (__s64)wanted)
		granted = room > 0 ? room : 0;
	if (granted < wanted)
		lb_add(&upstream->sent, -(__u64)(wanted - granted));
	return granted;
}

#endif
