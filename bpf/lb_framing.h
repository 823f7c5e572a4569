/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long is this message? Pure functions over the declared framing: no maps,
 * no helpers, so that the host compiler builds them too and the tests compare
 * them with the Python oracle (lb/framing/oracle.py) byte for byte.
 *
 * Before it includes this file, the caller defines LB_STREAM and, after it has
 * declared struct lb_measuring, four functions:
 *
 *   static int lb_load(LB_STREAM *stream, __u32 offset, void *to, __u32 length);
 *   static void lb_loop(__u32 n, long (*step)(__u32 i, void *context), void *context);
 *   static void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length);
 *   static int lb_awaited(struct lb_measuring *m, __u64 id);
 *
 * lb_load() copies bytes of the stream; lb_loop() is bpf_loop() in BPF, where an
 * ordinary loop of this size costs the verifier more than its million steps.
 * lb_note() takes note of a complete request with an id that gets a response;
 * lb_awaited() says of a complete response whether a request waited for it, and
 * does so once for each request; LB_FOR_ANOTHER: it is not for who gets this batch.
 * The window is at least LB_MAX_WINDOW + 8 bytes long: a field is read as one
 * unaligned 64-bit word.
 */
#ifndef LB_FRAMING_H
#define LB_FRAMING_H

#include <linux/errno.h>
#include <linux/types.h>

#include "lb_abi.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

enum {
	LB_FOR_ANOTHER = 2,
};

/* What a malformed message does to its connection; user space reads SO_ERROR. */
enum lb_malformed {
	LB_TOO_SHORT = -EBADMSG,
	LB_OVERSIZE = -EMSGSIZE,
	LB_BAD_MAGIC = -EPROTO,
	LB_UNEXPECTED_RESPONSE = -EPROTOTYPE,
};

/* One message, or several complete ones that travel together. */
struct lb_batch {
	__s32 length; /* bytes; 0: header incomplete; < 0: enum lb_malformed */
	__u32 messages;
	__u32 expecting; /* messages that get a response or are one */
	__u32 answers; /* responses that were awaited */
	__u64 id; /* of the last message */
};

/* What lb_measure() is asked, and what its steps have found so far. */
struct lb_measuring {
	const struct lb_framing *framing;
	LB_STREAM *stream;
	__u8 *window;
	__u32 offset;
	__u32 available; /* bytes from offset on */
	__u32 limit; /* messages */
	__u32 from_client;
	__u32 slot; /* of the upstream; generation 0: do not keep account of ids */
	__u32 generation;
	__u32 backend;
	__u32 now; /* microseconds */
	__u32 shared; /* the upstream carries the messages of many clients; one response a request */
	__u32 target; /* shared: the slot and generation of the client whose responses these are */
	__u32 target_generation;
	__u32 total;
	struct lb_batch batch;
};

static void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length);
static int lb_awaited(struct lb_measuring *m, __u64 id);

static __always_inline __u64 lb_word(const __u8 *at)
{
#ifdef __bpf__
	return *(const __u64 *)at;
#else
	__u64 word;

	__builtin_memcpy(&word, at, sizeof(word));
	return word;
#endif
}

static __always_inline __u64 lb_get(const __u8 *window, const struct lb_field *field)
{
	__u64 raw = lb_word(window + (field->offset & 63));
	__u32 shift = field->shift & 63;

	/* The word is little-endian on every machine that this is built for. */
	if (field->little)
		raw = (raw << shift) >> shift;
	else
		raw = __builtin_bswap64(raw) >> shift;
	return raw & field->mask;
}

static __always_inline int lb_matches(const __u8 *window, const struct lb_field *field)
{
	return lb_get(window, field) == field->value;
}

/* Whether responses are told apart by their ids; else by their order. */
static __always_inline int lb_by_id(const struct lb_framing *framing)
{
	return framing->flags & LB_HAS_ID;
}

/* Length of the message that starts with window, or enum lb_malformed. */
static __always_inline __s64 lb_length(const struct lb_framing *framing, const __u8 *window)
{
	__u64 field;
	__s64 length;

	if (framing->flags & LB_HAS_MAGIC && !lb_matches(window, &framing->magic))
		return LB_BAD_MAGIC;
	field = lb_get(window, &framing->length);
	if (field > LB_MAX_LENGTH)
		return LB_OVERSIZE;
	length = (__s64)field + framing->adjust;
	if (length < (__s64)framing->min_message)
		return LB_TOO_SHORT;
	if (length > (__s64)framing->max_message)
		return LB_OVERSIZE;
	return length;
}

/* One more message; 1 ends the batch. */
static long lb_measure_step(__u32 i, void *context)
{
	struct lb_measuring *m = context;
	const struct lb_framing *framing = m->framing;
	/* 1 to 64: a form from which the verifier of 6.1, too, learns both bounds. */
	__u32 size = ((framing->window - 1) & 63) + 1, expecting = 1;
	int complete;
	__s64 length;

	if (i >= m->limit || m->total + size > m->available)
		return 1;
	if (lb_load(m->stream, m->offset + m->total, m->window, size))
		return 1;
	length = lb_length(framing, m->window);
	if (framing->flags & LB_HAS_RESPONSE) {
		__u32 response = lb_matches(m->window, &framing->response);

		if (m->from_client && response && length > 0)
			length = LB_UNEXPECTED_RESPONSE;
		if (!m->from_client)
			expecting = response;
	}
	if (m->from_client && framing->flags & LB_HAS_NO_RESPONSE &&
	    lb_matches(m->window, &framing->no_response))
		expecting = 0;
	if (length < 0) {
		if (!i)
			m->batch.length = length;
		return 1;
	}
	complete = m->total + length <= m->available;
	if (i && (!complete || (!m->from_client && expecting && !m->batch.expecting)))
		return 1;
	if (lb_by_id(framing)) {
		m->batch.id = lb_get(m->window, &framing->id);
		if (expecting && complete && m->from_client) {
			lb_note(m, m->batch.id, m->offset + m->total, length);
		} else if (expecting && complete) {
			__u32 awaited = lb_awaited(m, m->batch.id);

			if (awaited == LB_FOR_ANOTHER)
				return 1;
			m->batch.answers += awaited;
			if (!awaited && (m->shared || !(framing->flags & LB_MANY_RESPONSES)))
				expecting = 0;
		}
	}
	if (i && !m->from_client && !expecting && m->batch.expecting)
		return 1;
	m->batch.expecting += expecting;
	m->total += length;
	m->batch.length = m->total;
	m->batch.messages++;
	return m->total >= m->available;
}

/*
 * Measures what stands at offset: all complete messages up to limit, or the
 * first one alone when it is not complete yet. An error ends a batch before it,
 * and is returned only when it is the first thing there.
 *
 * A batch from a backend holds either responses that are to reach the client, or
 * other messages, not both.
 */
static __always_inline struct lb_batch lb_measure(struct lb_measuring *m)
{
	lb_loop(LB_MAX_BATCH, lb_measure_step, m);
	return m->batch;
}

#endif
