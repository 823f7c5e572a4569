/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Zone transfers: DNS queries that get many responses.
 *
 * A shared upstream's id is free when the first response to it has come, and a response
 * that comes later may then meet a stranger's request. So these queries are refused where
 * clients share upstreams. What is asked for stands behind the name (RFC 1035, 4.1.2).
 */
#ifndef LB_TRANSFER_H
#define LB_TRANSFER_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_decide.h"

enum lb_qtype {
	LB_IXFR = 251, /* RFC 1995 */
	LB_AXFR = 252, /* RFC 5936 */
};

enum {
	LB_NAME_END = 60, /* the last place in a window where a name may end */
	LB_SHORT_LABELS = 32, /* more do not fit in it */
};

/* Whether the messages of the client in a slot have to be looked at. */
static __always_inline bool lb_transfers(const struct lb_slot *client, __u32 number,
					 const struct lb_framing *framing)
{
	return framing->flags & LB_DNS_TRANSFERS && client->route != number;
}

/* The start of a query, in memory. */
struct lb_question {
	const __u8 *window;
	__u32 at;
	__u32 named; /* at is where the name ends */
};

static long lb_question_step(__u32 i, void *context)
{
	struct lb_question *q = context;
	__u8 count;

	(void)i;
	if (q->at > LB_NAME_END)
		return 1;
	count = q->window[q->at & 63];
	if (!count || count > 63) { /* see lb_label_step() */
		q->named = 1;
		return 1;
	}
	q->at += 1 + count;
	return 0;
}

/* Of the four bytes where the name ends: behind the root, which is one byte, or a pointer, two. */
static __always_inline int lb_asks_transfer(__u32 word)
{
	__u32 type;

	word = __builtin_bswap32(word);
	type = word >> 24 ? word & 0xffff : word >> 8 & 0xffff;
	return type == LB_AXFR || type == LB_IXFR;
}

/* The same as lb_is_transfer(), of a name of any length. */
static __always_inline int lb_is_long_transfer(struct __sk_buff *skb, __u32 offset, __u32 available)
{
	struct lb_message m = {
		.skb = skb,
		.offset = offset,
		.length = available,
		.available = available,
	};
	enum lb_span span = lb_look_at_name(&m);
	__u32 word;

	if ((span != LB_SPAN_THERE && span != LB_SPAN_POINTER) ||
	    m.at + m.bytes + sizeof(word) > available ||
	    bpf_skb_load_bytes(skb, offset + m.at + m.bytes, &word, sizeof(word)))
		return 0;
	return lb_asks_transfer(word);
}

/*
 * Whether a query of the client in a slot that starts at offset is one, as far as it has
 * arrived. Most names are short: one copy of what is in front instead of one for each label
 * (the window holds the start of this message, and goes on to). A global function, because
 * the parser asks it in a loop: the verifier looks at it once.
 */
__noinline int lb_is_transfer(struct __sk_buff *skb, __u32 number, __u32 offset, __u32 available)
{
	struct lb_slot *client = bpf_map_lookup_elem(&lb_slots, &number);
	struct lb_question q = {
		.at = lb_unknown(LB_DNS_QUESTION),
		.named = lb_unknown(0),
	};
	__u64 size = available < sizeof(client->window) ? available : sizeof(client->window), at;

	if (!client || size < LB_DNS_QUESTION)
		return 0;
	/* Less one: see lb_inflight.h. */
	size -= 1;
	asm volatile("" : "+r"(size));
	if (size >= sizeof(client->window) || lb_load(skb, offset, client->window, size + 1))
		return 0;
	q.window = client->window;
	bpf_loop(LB_SHORT_LABELS, lb_question_step, &q, 0);
	at = q.at;
	asm volatile("" : "+r"(at));
	if (q.named && at <= LB_NAME_END && at + 3 <= size)
		return lb_asks_transfer(*(__u32 *)&client->window[at]);
	return available > sizeof(client->window) ? lb_is_long_transfer(skb, offset, available) : 0;
}

#endif
