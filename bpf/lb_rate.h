/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rates: how many of a client's messages may go now?
 *
 * Theory of operation. A rate is a token bucket, kept as one word, the time at which
 * it is full again (GCRA, ITU-T I.371): a message moves that time on by one interval,
 * and may go if the bucket is then full within `burst` from now. The word is only
 * moved by compare-and-swap or add, so that a rate is exact however many processors
 * share it, and a clock that is behind on one of them can only see fewer tokens.
 *
 * The parser takes as many as may travel together, measures, and gives back what it
 * did not need. Meanwhile the bucket may have run full without them: what is given
 * back is bounded by what of them would still be missing now, so that a bucket never
 * holds more than its burst. A message that is still coming in is charged in its
 * verdict, and overdraws the bucket by one at most.
 *
 * A client may have two rates, its listener's and its address's; number 0 is none.
 */
#ifndef LB_RATE_H
#define LB_RATE_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_loop.h"
#include "lb_maps.h"

enum lb_rate_limit {
	LB_RATE_ATTEMPTS = 64, /* each fails only if another processor has succeeded */
};

/* What is taken from one rate. */
struct lb_draw {
	struct lb_rate *rate;
	__u64 now;
	__u64 full; /* the rate's, with what was taken */
	__u32 wanted;
	__u32 anyhow; /* overdraw it if need be */
	__u32 taken;
};

static __always_inline bool lb_limited(const struct lb_slot *client)
{
	return client->rate | client->address_rate;
}

static long lb_draw_step(__u32 i, void *context)
{
	struct lb_draw *d = context;
	struct lb_rate *rate = d->rate;
	__u64 before = *(volatile __u64 *)&rate->full, interval = rate->interval;
	__u64 from = before > d->now ? before : d->now, missing = from - d->now, n = d->wanted;

	(void)i;
	if (!interval)
		return 1;
	if (!d->anyhow) {
		__u64 there = missing < rate->burst ? (rate->burst - missing) / interval : 0;

		if (!there)
			return 1;
		if (there < n)
			n = there;
	}
	if (__sync_val_compare_and_swap(&rate->full, before, from + n * interval) != before)
		return 0;
	d->full = from + n * interval;
	d->taken = n;
	return 1;
}

/* Takes what is there of what is wanted. */
static __always_inline void lb_draw(struct lb_draw *d, __u32 number, __u32 wanted, bool anyhow)
{
	d->rate = number ? bpf_map_lookup_elem(&lb_rates, &number) : NULL;
	if (!d->rate)
		return;
	d->now = bpf_ktime_get_ns();
	d->wanted = wanted;
	d->anyhow = lb_unknown(anyhow);
	d->taken = lb_unknown(0);
	bpf_loop(LB_RATE_ATTEMPTS, lb_draw_step, d, 0);
}

/* Gives back what was taken and not needed; full is what taking it has made of the rate. */
static __always_inline void lb_give_back(__u32 number, __u64 full, __u32 messages)
{
	struct lb_rate *rate = number ? bpf_map_lookup_elem(&lb_rates, &number) : NULL;
	__u64 now = bpf_ktime_get_ns(), back;

	if (!rate || full <= now)
		return;
	back = messages * rate->interval;
	if (back > full - now)
		back = full - now;
	__sync_fetch_and_add(&rate->full, -back);
}

/*
 * The functions that follow are global functions: so the verifier looks at each once, by
 * itself, and not at each of its callers' states. Hence the number of the slot, which
 * is where they keep what they found.
 */

/* Charges for a message that user space has carried. */
__noinline int lb_charge_rates(__u32 rate, __u32 address_rate)
{
	struct lb_draw draw = {};

	lb_draw(&draw, rate, 1, true);
	lb_draw(&draw, address_rate, 1, true);
	return 0;
}

/* Charges for messages that cannot wait any more, as if they had been allowed. */
__noinline int lb_overdraw(__u32 number, __u32 messages)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_draw draw = {};

	if (!client)
		return 0;
	lb_draw(&draw, client->rate, messages, true);
	client->rate_full = draw.full;
	draw.full = 0;
	lb_draw(&draw, client->address_rate, messages, true);
	client->address_full = draw.full;
	client->allowed = messages;
	return 0;
}

/*
 * How many of the wanted messages may go (client->allowed), or that those that are
 * there are to be dropped (client->denied), or LB_PAUSED_RATE: the client has to wait.
 * One that has begun does not wait, and what was decided when it began stands. Wanted 0:
 * one that cannot be measured yet.
 */
__noinline int lb_allow(__u32 number, __u32 wanted, __u32 begun)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_draw listener = {}, address = {};
	struct lb_rate *over = NULL;
	__u32 allowed = wanted ? wanted : 1;

	if (!client)
		return LB_RUNNING;
	client->allowed = 0;
	if (begun && client->started && client->denied)
		return LB_RUNNING;
	client->denied = 0;
	lb_draw(&listener, client->rate, allowed, false);
	if (listener.rate) {
		allowed = listener.taken;
		if (!allowed)
			over = listener.rate;
	}
	if (!over) {
		lb_draw(&address, client->address_rate, allowed, false);
		if (address.rate) {
			if (!address.taken)
				over = address.rate;
			if (address.taken < allowed)
				lb_give_back(client->rate, listener.full, allowed - address.taken);
			allowed = address.taken;
		}
	}
	if (!over) {
		client->allowed = allowed;
		client->rate_full = listener.full;
		client->address_full = address.full;
		return LB_RUNNING;
	}
	if (over->deny && !client->started) {
		client->denied = LB_DENIED_RATE;
		return LB_RUNNING;
	}
	if (!begun)
		return LB_PAUSED_RATE;
	return lb_overdraw(number, 1);
}

/* Of the messages that were allowed, so many have been measured whole. */
__noinline int lb_settle(__u32 number, __u32 messages)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	__u32 allowed = client ? client->allowed : 0;

	if (!client || allowed <= messages)
		return 0;
	lb_give_back(client->rate, client->rate_full, allowed - messages);
	lb_give_back(client->address_rate, client->address_full, allowed - messages);
	return 0;
}

#endif
