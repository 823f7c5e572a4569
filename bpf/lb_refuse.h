/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Refusals: what becomes of messages that are denied.
 *
 * Where the protocol has a word for it, a request turns into its own refusal by a few
 * changed bytes (framing->refusal), and goes back to the socket that it came from, behind
 * what waits there. Its client needs room for that like for any response, which the
 * parser sees to (lb_take): who does not read is not read from.
 */
#ifndef LB_REFUSE_H
#define LB_REFUSE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_count.h"
#include "lb_loop.h"
#include "lb_maps.h"
#include "lb_room.h"
#include "lb_shared.h"

/* One message more. */
static long lb_refuse_step(__u32 __attribute__((unused)) i, void *context)
{
	struct lb_exchange *x = context;
	const struct lb_framing *framing = x->framing;
	__u32 length = lb_read(x), n, at;
	__u8 byte;

	if (!length)
		return 1;
	for (n = 0; n < LB_MAX_EDITS && n < framing->edits; n++) {
		at = x->offset + framing->refusal[n].offset;
		if (lb_load(x->skb, at, &byte, 1))
			goto failed;
		byte = (byte & framing->refusal[n].keep) | framing->refusal[n].set;
		if (bpf_skb_store_bytes(x->skb, at, &byte, 1, 0))
			goto failed;
	}
	x->offset += length;
	return 0;
failed:
	x->failed = 1;
	return 1;
}

/* Sends a batch back to the client in a slot; nonzero if there is no memory to change it. */
static __always_inline int lb_turn(struct lb_exchange *x, __u32 number, struct lb_slot *client,
				   __u32 bytes, int *verdict)
{
	struct lb_room room;

	/* Before anything is redirected there: see lb_room(). */
	room = lb_room(number, client, LB_CLIENT_STATES);
	if (!room.alive)
		return 0;
	if (!lb_pull(x, client->batched))
		return 1;
	bpf_loop(LB_MAX_BATCH, lb_refuse_step, x, 0);
	if (x->failed)
		return 1;
	lb_add(&client->redirected_bytes, bytes);
	*verdict = bpf_sk_redirect_map(x->skb, &lb_socks, number, 0);
	if (*verdict == SK_PASS)
		lb_count(LB_REFUSALS, client->batched);
	return 0;
}

/*
 * The verdict on a batch of the client in a slot that is denied, for the reason in
 * client->denied; < 0: there is no memory to refuse it.
 */
__noinline int lb_refuse(struct __sk_buff *skb, __u32 number, __u32 offset, __u32 length)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_exchange x = {
		.skb = skb,
		.offset = lb_unknown(offset),
		.end = offset + length,
		.failed = lb_unknown(0),
	};
	enum lb_counter why = LB_DROPPED_RATE_LIMITED;
	int verdict = SK_DROP;
	__u32 key;

	if (!client)
		return SK_DROP;
	key = client->framing;
	x.framing = bpf_map_lookup_elem(&lb_framings, &key);
	x.window = client->window;
	if (x.framing && x.framing->edits && lb_turn(&x, number, client, length, &verdict))
		return -1;
	if (client->denied == LB_DENIED_RULE)
		why = LB_DROPPED_RULE;
	else if (client->denied == LB_DENIED_TRANSFER)
		why = LB_DROPPED_TRANSFER;
	lb_count(why, client->batched);
	return verdict;
}

#endif
