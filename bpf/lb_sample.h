/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A sample of a client's message, for the taps of its listener (lb_tap.h). */
#ifndef LB_SAMPLE_H
#define LB_SAMPLE_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_framing.h"
#include "lb_inflight.h"
#include "lb_maps.h"
#include "lb_slot.h"
#include "lb_tap.h"

static const __u32 LB_NUMBERED = 1U << 31; /* no number is 0 */

/* Whose turn it is to see a message of the listener; LB_MAX_TAPS: nobody's. */
static __always_inline __u32 lb_who_looks(struct lb_taps *taps, __u32 listener)
{
	__u64 now = bpf_ktime_get_ns();

	for (__u32 place = 0; place < LB_MAX_TAPS; place++) {
		struct lb_tap *tap = &taps->taps[place];

		if (*(volatile __u32 *)&tap->listener == listener && lb_due(tap, now))
			return place;
	}
	return LB_MAX_TAPS;
}

/* Has the response to the request in the client's window recognized, by a number. */
static __always_inline enum lb_fate lb_await(struct __sk_buff *skb, struct lb_slot *client,
					     struct lb_slot *upstream,
					     const struct lb_framing *framing, __u32 offset,
					     __u32 sample)
{
	const struct lb_window *window = (const struct lb_window *)client->window;
	struct lb_marks *marks;
	__u64 raw = 0;
	__u32 number;
	__s32 at;

	if (upstream->role == LB_ROLE_SHARED)
		return LB_FATE_AWAITED; /* lb_exchange_requests() does it */
	if (lb_by_id(framing)) {
		at = lb_id_place(framing, window, 1);
		if (at < 0 || lb_load(skb, offset + at, &raw, ((framing->id_width - 1) & 7) + 1))
			return LB_FATE_UNTIMED;
		if (lb_recognize(client->target, client->target_generation,
				 lb_id_value(framing, raw), sample))
			return LB_FATE_UNTIMED;
		return LB_FATE_AWAITED;
	}
	marks = bpf_map_lookup_elem(&lb_marks, &client->target);
	if (!marks)
		return LB_FATE_UNTIMED;
	/* One at a time: whether the last one is still outstanding, its number says. */
	if (marks->sampled && (__s32)((__u32)(marks->sampled >> 32) -
				      (__u32) * (volatile __u64 *)&upstream->answered) >= 0)
		return LB_FATE_UNTIMED;
	number = upstream->sent - client->expecting;
	marks->sampled = (__u64)number << 32 | sample;
	return LB_FATE_AWAITED;
}

/* A function of its own: so the structs reach the BTF. */
static __noinline int lb_show(struct __sk_buff *skb, struct lb_sample *sample, __u32 offset)
{
	__u32 shown = (sample->length < LB_SAMPLE ? sample->length : LB_SAMPLE) - 1;

	/* As for lb_keep_head(): a form that the verifier of 6.1 understands. */
	asm volatile("" : "+r"(shown));
	sample->shown = 0;
	if (shown < LB_SAMPLE && !lb_load(skb, offset, sample->bytes, shown + 1))
		sample->shown = shown + 1;
	sample->family = skb->family;
	sample->port = bpf_ntohl(skb->remote_port);
	if (sample->family == 2) { /* AF_INET */
		sample->address[0] = skb->remote_ip4;
	} else {
		sample->address[0] = skb->remote_ip6[0];
		sample->address[1] = skb->remote_ip6[1];
		sample->address[2] = skb->remote_ip6[2];
		sample->address[3] = skb->remote_ip6[3];
	}
	return 0;
}

/*
 * Samples the first message of a client's batch, which has its verdict right now, if
 * anybody's turn it is. Gives the number of the sample, or 0.
 */
__noinline int lb_sample(struct __sk_buff *skb, __u32 number, __u32 offset)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number), *upstream;
	struct lb_taps *taps = lb_all_taps();
	struct lb_framing *framing;
	struct lb_sample *sample;
	__u32 place, key, size;
	bool denied;
	__s64 seen;

	if (!client || !taps || !client->listener)
		return 0;
	key = client->framing;
	framing = bpf_map_lookup_elem(&lb_framings, &key);
	upstream = lb_slot_of(client->target, client->target_generation);
	/* As lb_request() will see it. */
	denied = !client->target_generation && client->denied;
	if (!framing || (!upstream && !denied))
		return 0;
	size = ((framing->window - 1) & 63) + 1;
	if (lb_load(skb, offset, client->window, size))
		return 0;
	seen = lb_look(framing, (const struct lb_window *)client->window, 1);
	if (seen < 0)
		return 0;
	place = lb_who_looks(taps, client->listener);
	if (place >= LB_MAX_TAPS)
		return 0;
	sample = bpf_ringbuf_reserve(&lb_samples, sizeof(*sample), 0);
	if (!sample) {
		lb_add(&taps->taps[place].lost, 1);
		return 0;
	}
	sample->record.kind = LB_RECORD_SAMPLE;
	sample->record.number = __sync_fetch_and_add(&taps->samples, 1) | LB_NUMBERED;
	sample->record.time = bpf_ktime_get_ns();
	sample->tap = place;
	sample->life = taps->taps[place].life;
	sample->length = seen & LB_MAX_LENGTH;
	sample->batch = client->batched;
	sample->client = number;
	sample->client_generation = client->generation;
	sample->backend = upstream ? upstream->backend : 0;
	if (denied)
		sample->fate = LB_FATE_DENIED;
	else if (!upstream || !(seen >> LB_EXPECTING & 1))
		sample->fate = LB_FATE_QUIET;
	else
		sample->fate =
			lb_await(skb, client, upstream, framing, offset, sample->record.number);
	lb_show(skb, sample, offset);
	key = sample->record.number;
	bpf_ringbuf_submit(sample, 0);
	return key;
}

#endif
