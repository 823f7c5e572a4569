/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Decisions: what follows from a message's own bytes for where it goes.
 *
 * A decision is a number, so that two of them can be compared: messages travel
 * together only as far as theirs mean the same. From the top:
 *
 *   8 bits  LB_DECIDED, LB_DENY
 *   8 bits  the pool
 *  16 bits  the backend, plus one; 0: whichever of the pool
 *   8 bits  the member of the pool that stands at the message's place, plus one
 *  24 bits  the place in the pool's table
 *
 * Bytes that the message does not have are no obstacle; for those that it has and that
 * have not arrived yet the parser waits (LB_INCOMPLETE).
 */
#ifndef LB_DECIDE_H
#define LB_DECIDE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_loop.h"
#include "lb_maps.h"

static const __u64 LB_INCOMPLETE = ~0ULL;
static const __u64 LB_DECIDED = 1ULL << 56;
static const __u64 LB_DENY = 1ULL << 57;
static const __u64 LB_SAME = ~0ULL; /* what two decisions have in common that are the same ... */
static const __u64 LB_SAME_MEMBER = ~0xffffffULL; /* ... or mean the same member */

static __always_inline __u64 lb_to_pool(__u32 pool)
{
	return LB_DECIDED | (__u64)pool << 48;
}

static __always_inline __u64 lb_at_place(__u32 place, __u32 member)
{
	return (member + 1) << 24 | place;
}

static __always_inline bool lb_denies(__u64 decision)
{
	return decision != LB_INCOMPLETE && decision & LB_DENY;
}

static __always_inline __u32 lb_pool_of(__u64 decision)
{
	return decision >> 48 & 0xff;
}

/* Plus one; 0: none in particular. */
static __always_inline __u32 lb_backend_of(__u64 decision)
{
	return decision >> 32 & 0xffff;
}

static __always_inline __u32 lb_place_of(__u64 decision)
{
	return decision & 0xffffff;
}

static __always_inline __u32 lb_member_of(__u64 decision)
{
	return (decision >> 24 & 0xff) - 1;
}

static __always_inline bool lb_has_place(__u64 decision)
{
	return decision >> 24 & 0xff;
}

enum lb_span {
	LB_SPAN_THERE,
	LB_SPAN_SHORT, /* the message ends before it does */
	LB_SPAN_MISSING, /* it has not all arrived */
	LB_SPAN_POINTER, /* a name that ends in a pointer */
};

/* Where a message's bytes are, and which of them are looked at. */
struct lb_message {
	struct __sk_buff *skb;
	__u32 offset; /* of the message in the packet */
	__u32 length;
	__u32 available; /* bytes of it that have arrived */
	/* the span: */
	__u32 at; /* from the start of the message */
	__u32 bytes;
	/* walking over labels: enum lb_span; hashing: whether upper case counts as lower. One
	 * field, because stack is short. */
	__u32 how;
	__u64 hash;
	struct lb_routing *routing; /* its client's, or NULL */
};

enum lb_dns {
	LB_DNS_QUESTION = 2 + 12, /* behind the length and the header: RFC 1035, 4.1 and 4.2.2 */
	LB_DNS_LABELS = 128,
};

/* Looks at so many bytes, or at those of them that the message has. */
static __always_inline enum lb_span lb_look_at(struct lb_message *m, __u32 at, __u32 bytes)
{
	enum lb_span span = LB_SPAN_THERE;

	if (at > m->length)
		at = m->length;
	if (bytes > m->length - at) {
		bytes = m->length - at;
		span = LB_SPAN_SHORT;
	}
	m->at = at;
	m->bytes = bytes;
	return at + bytes > m->available ? LB_SPAN_MISSING : span;
}

/* An unsigned integer of 1 to 8 bytes of the message. */
static __always_inline enum lb_span lb_integer(struct lb_message *m, __u32 offset, __u32 width,
					       __u32 little, __u64 *value)
{
	enum lb_span span = lb_look_at(m, offset, width);
	__u64 word = 0;

	if (span != LB_SPAN_THERE)
		return span;
	width = ((width - 1) & 7) + 1;
	if (bpf_skb_load_bytes(m->skb, m->offset + m->at, &word, width))
		return LB_SPAN_SHORT;
	*value = little ? word : __builtin_bswap64(word) >> (64 - 8 * width & 63);
	return LB_SPAN_THERE;
}

/* Looks at the bytes behind their number, LB_MAX_KEY of them at most. */
static __always_inline enum lb_span lb_look_at_string(struct lb_message *m, __u32 offset,
						      __u32 width, __u32 little)
{
	__u64 count = 0;
	enum lb_span span = lb_integer(m, offset, width, little, &count);

	if (span != LB_SPAN_THERE) {
		m->bytes = 0;
		return span;
	}
	return lb_look_at(m, offset + width, count < LB_MAX_KEY ? count : LB_MAX_KEY);
}

/* One label more; 1 ends the name. */
static long lb_label_step(__u32 i, void *context)
{
	struct lb_message *m = context;
	__u8 count = 0;

	(void)i;
	if (m->at >= m->bytes)
		return 1;
	if (m->at >= m->available) {
		m->how = LB_SPAN_MISSING;
		return 1;
	}
	if (bpf_skb_load_bytes(m->skb, m->offset + m->at, &count, 1))
		return 1;
	if (!count || count > 63) { /* the root; or a pointer, which no question begins with */
		m->how = count ? LB_SPAN_POINTER : LB_SPAN_THERE;
		return 1;
	}
	if (m->routing) {
		__u32 start = m->at - LB_DNS_QUESTION;

		m->routing->labels[start >> 6 & 3] |= 1ULL << (start & 63);
	}
	m->at += 1 + count;
	return 0;
}

/* Looks at the labels of a question's name with their lengths, without the root or a pointer. */
static __always_inline enum lb_span lb_look_at_name(struct lb_message *m)
{
	enum lb_span span;
	__u32 end;

	m->at = lb_unknown(LB_DNS_QUESTION);
	m->bytes = LB_DNS_QUESTION + LB_MAX_KEY; /* where it ends at the latest */
	m->how = lb_unknown(LB_SPAN_SHORT);
	if (m->length < m->bytes)
		m->bytes = m->length;
	bpf_loop(LB_DNS_LABELS, lb_label_step, m, 0);
	end = m->at < m->bytes ? m->at : m->bytes;
	span = lb_look_at(m, LB_DNS_QUESTION, end > LB_DNS_QUESTION ? end - LB_DNS_QUESTION : 0);
	return span == LB_SPAN_MISSING ? span : m->how;
}

#endif
