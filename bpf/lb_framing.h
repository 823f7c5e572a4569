/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long is this message? Pure functions over the declared framing: no maps,
 * no helpers, so that the host compiler builds them too and the tests compare
 * them with the Python oracle (lb/framing/oracle.py) byte for byte.
 *
 * Before it includes this file, the caller defines LB_STREAM and, after it has
 * declared struct lb_measuring, six functions:
 *
 *   static int lb_load(LB_STREAM *stream, __u32 offset, void *to, __u32 length);
 *   static void lb_loop(__u32 n, long (*step)(__u32 i, void *context), void *context);
 *   static void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length);
 *   static int lb_awaited(struct lb_measuring *m, __u64 id);
 *   static int lb_together(struct lb_measuring *m, __u32 offset, __u32 length);
 *   static __u64 lb_unknown(__u64 value);
 *
 * lb_load() copies bytes of the stream; lb_loop() is bpf_loop() in BPF, where an
 * ordinary loop of this size costs the verifier more than its million steps.
 * lb_note() takes note of a complete request with an id that gets a response;
 * lb_awaited() says of a complete response whether a request waited for it, and
 * does so once for each request; LB_FOR_ANOTHER: it is not for who gets this batch.
 * lb_together() says whether a complete message goes where the first one of the batch
 * goes; it is asked of clients where measuring.target_generation is set. lb_unknown() is its
 * argument (lb_loop.h). The window is at least LB_MAX_WINDOW + 8 bytes long: a field is read as one
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

/* Parts of lb_batch.errors; a batch has at most LB_MAX_BATCH. */
enum lb_errors {
	LB_ERRORS = 0xff, /* how many */
	LB_FIRST_ERROR = 1 << 8, /* the first message is one */
	LB_LAST_ERRORS = 16, /* shift: how many come last of all */
	LB_ONE_ERROR = (1 << LB_LAST_ERRORS) + 1,
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
	__u32 open; /* the last message is a quiet request that may be answered, or such an answer */
	__u32 errors; /* error responses: enum lb_errors */
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
	/* Shared: slot and generation of the client whose responses these are. Of a client: its
	 * own, and whether where a message goes depends on what it says. */
	__u32 target;
	__u32 target_generation;
	__u32 total;
	struct lb_batch batch;
};

static void lb_note(struct lb_measuring *m, __u64 id, __u32 offset, __u32 length);
static int lb_awaited(struct lb_measuring *m, __u64 id);
static int lb_together(struct lb_measuring *m, __u32 offset, __u32 length);

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

/* The field that raw starts with; what raw has behind it does not matter. */
static __always_inline __u64 lb_decode(__u64 raw, const struct lb_field *field)
{
	__u32 shift = field->shift & 63;

	/* The word is little-endian on every machine that this is built for. */
	if (field->little)
		raw = (raw << shift) >> shift;
	else
		raw = __builtin_bswap64(raw) >> shift;
	return raw & field->mask;
}

static __always_inline __u64 lb_get(const __u8 *window, const struct lb_field *field)
{
	return lb_decode(lb_word(window + (field->offset & 63)), field);
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

/*
 * Where the id of the message that starts with window stands, counted from the start
 * of the message; < 0: nowhere in a message of any length. That it lies within this
 * message is certain only of one that lb_measure() has measured. It has
 * framing->id_width bytes, and with LB_ID_AFTER it may lie outside of the window.
 */
static __always_inline __s32 lb_id_offset(const struct lb_framing *framing, const __u8 *window,
					  __u32 from_client)
{
	__u64 count;

	if (!(framing->flags & LB_HAS_ID))
		return -1;
	if (!(framing->flags & LB_ID_AFTER))
		return from_client ? framing->id.offset : framing->response_id.offset;
	count = lb_get(window, &framing->id_after);
	if (count > LB_MAX_LENGTH || count + framing->id.offset > LB_MAX_LENGTH)
		return -1;
	return framing->id.offset + count;
}

/*
 * What a step asks of a message. In BPF these are functions that the verifier looks at
 * once, by themselves: in the midst of the loop each of their branches would multiply
 * what it has to follow there.
 */
#ifdef __bpf__
#define LB_APART __attribute__((noinline))
#else
#define LB_APART static
#endif

/* A window as far as a field may be read, which is eight bytes from any offset. */
struct lb_window {
	__u8 bytes[72];
};

/* What lb_look() says beside the length, which has 31 bits. */
enum lb_seen {
	LB_EXPECTING = 32, /* bit: gets a response or is one */
	LB_QUIET = 33, /* bit: a quiet request that may be answered, or such an answer */
	LB_FAILED = 34, /* bit: an error response */
};

/* Length of the message that starts with window, or enum lb_malformed. */
static __always_inline __s64 lb_length(const struct lb_framing *framing, const __u8 *window)
{
	__s64 length, at;
	__u64 field;

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
	if (framing->flags & LB_ID_AFTER) {
		at = lb_id_offset(framing, window, 1);
		if (at < 0 || at + framing->id_width > length)
			return LB_TOO_SHORT;
	}
	return length;
}

/* Whether a request is quiet: by itself it gets no response. */
static __always_inline int lb_quiet(const struct lb_framing *framing, const __u8 *window)
{
	__u64 byte;

	if (!(framing->flags & LB_HAS_NO_RESPONSE))
		return 0;
	if (!(framing->flags & LB_NO_RESPONSE_SET))
		return lb_matches(window, &framing->no_response);
	byte = lb_get(window, &framing->no_response);
	return framing->no_response_set[(byte >> 6) & 3] >> (byte & 63) & 1;
}

/* The length of the message with a bit for each enum lb_seen, or enum lb_malformed. */
LB_APART __s64 lb_look(const struct lb_framing *framing, const struct lb_window *window,
		       __u32 from_client)
{
	__u64 expecting = 1, open = 0, failed = 0;
	__s64 length;

	if (!framing || !window)
		return LB_BAD_MAGIC;
	length = lb_length(framing, window->bytes);
	if (length < 0)
		return length;
	if (framing->flags & LB_HAS_RESPONSE) {
		int response = lb_matches(window->bytes, &framing->response);

		if (from_client && response)
			return LB_UNEXPECTED_RESPONSE;
		if (!from_client)
			expecting = response;
	}
	if (from_client || framing->flags & LB_ANY_RESPONSES) {
		int quiet = lb_quiet(framing, window->bytes);

		if (from_client && quiet)
			expecting = 0;
		open = quiet && framing->flags & LB_ANY_RESPONSES;
	}
	if (!from_client && framing->flags & LB_HAS_ERROR)
		failed = lb_matches(window->bytes, &framing->error);
	return (__u64)length | expecting << LB_EXPECTING | open << LB_QUIET | failed << LB_FAILED;
}

/* lb_id_offset() */
LB_APART __s32 lb_id_place(const struct lb_framing *framing, const struct lb_window *window,
			   __u32 from_client)
{
	return framing && window ? lb_id_offset(framing, window->bytes, from_client) : -1;
}

/* The id that these bytes start with. */
LB_APART __u64 lb_id_value(const struct lb_framing *framing, __u64 raw)
{
	return framing ? lb_decode(raw, &framing->id) : 0;
}

/* The id of the message in the window, which has it at an offset that is there. */
static __always_inline __u64 lb_id(struct lb_measuring *m, __u32 at)
{
	const struct lb_framing *framing = m->framing;
	__u64 raw = 0;

	if (!(framing->flags & LB_ID_AFTER))
		raw = lb_word(m->window + (at & 63));
	/* 1 to 8: as for the window, a form that the verifier of 6.1 understands. */
	else if (lb_load(m->stream, m->offset + m->total + at, &raw,
			 ((framing->id_width - 1) & 7) + 1))
		return 0;
	return lb_id_value(framing, raw);
}

/* One more message; 1 ends the batch. */
static long lb_measure_step(__u32 i, void *context)
{
	struct lb_measuring *m = context;
	const struct lb_framing *framing = m->framing;
	/* 1 to 64: a form from which the verifier of 6.1, too, learns both bounds. */
	__u32 size = ((framing->window - 1) & 63) + 1, expecting, open;
	const struct lb_window *window = (const struct lb_window *)m->window;
	__s64 seen, length, at;
	int complete;

	if (i >= m->limit || m->total + size > m->available)
		return 1;
	if (lb_load(m->stream, m->offset + m->total, m->window, size))
		return 1;
	seen = lb_look(framing, window, m->from_client);
	if (seen < 0) {
		if (!i)
			m->batch.length = seen;
		return 1;
	}
	length = seen & LB_MAX_LENGTH;
	expecting = seen >> LB_EXPECTING & 1;
	open = seen >> LB_QUIET & 1;
	complete = m->total + length <= m->available;
	if (i && (!complete || (!m->from_client && expecting && !m->batch.expecting)))
		return 1;
	if (i && m->from_client && m->target_generation &&
	    !lb_together(m, m->offset + m->total, length))
		return 1;
	if (lb_by_id(framing)) {
		at = lb_id_place(framing, window, m->from_client);
		/* Behind a string it may not be there yet: the header is incomplete. */
		if (m->total + at + framing->id_width > m->available)
			return 1;
		m->batch.id = lb_id(m, at);
		if (expecting && complete && m->from_client) {
			lb_note(m, m->batch.id, m->offset + m->total, length);
		} else if (expecting && complete && !open) {
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
	m->batch.open = open;
	if (framing->flags & LB_HAS_ERROR && expecting) {
		if (seen >> LB_FAILED & 1)
			m->batch.errors += i ? LB_ONE_ERROR : LB_ONE_ERROR + LB_FIRST_ERROR;
		else
			m->batch.errors &= LB_ERRORS | LB_FIRST_ERROR;
	}
	/* Unknown: or the verifier counts the rounds. */
	m->batch.expecting = lb_unknown(m->batch.expecting) + expecting;
	m->total = lb_unknown(m->total) + length;
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
