/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the BPF programs and user space share.
 *
 * Fixed-width integers (and enums, which are 32 bits wide and reach the BTF only
 * as the type of something), explicit padding, no unions and no bitfields:
 * lb/abi.py mirrors every struct here, and each start compares the mirror with
 * the BTF of the object that is being loaded.
 *
 * Who writes what is part of the layout. A struct that both sides write has one
 * cache line for each writer, because user space stores through a memory map
 * while programs run: nobody ever writes a whole struct over a live one.
 */
#ifndef LB_ABI_H
#define LB_ABI_H

#include <linux/types.h>

enum lb_limit {
	LB_MAX_UPSTREAMS = 32, /* of one client: the verdict's choice is a bounded loop */
	LB_MAX_BATCH = 64, /* messages that travel together: the parser's loop */
	LB_MAX_WINDOW = 56, /* leading bytes of a message that fields may use: one copy */
	LB_MAX_BACKENDS = 1024, /* of all pools: one per-CPU value holds their turns */
	LB_MAX_POOLS = 64,
	LB_MARKS = 32, /* requests of one upstream that are timed at once */
	LB_BUCKETS = 128, /* of a duration histogram: 4 for each power of two */
	LB_STRIDE = 1 << 20, /* virtual time of one message at weight 1 */
	LB_MAX_LENGTH = 0x7fffffff, /* a length field above this is an error in any framing */
};

enum lb_role {
	LB_ROLE_FREE,
	LB_ROLE_CLIENT,
	LB_ROLE_UPSTREAM,
};

enum lb_balance {
	LB_ROUND_ROBIN,
	LB_LEAST_OUTSTANDING,
	LB_RANDOM,
};

enum lb_framing_flag {
	LB_HAS_ID = 1 << 0,
	LB_HAS_RESPONSE = 1 << 1,
	LB_HAS_NO_RESPONSE = 1 << 2,
	LB_HAS_MAGIC = 1 << 3,
	LB_FIFO = 1 << 4,
};

/* Index of lb_counters; everything but a redirect has one. */
enum lb_counter {
	LB_PASSED_NO_UPSTREAM, /* no live upstream to send the message to */
	LB_PASSED_HELD, /* the client is being drained */
	LB_DROPPED_CLIENT_GONE, /* a response to a client that has left */
	LB_DROPPED_UNSOLICITED, /* a backend's message that answers nothing */
	LB_DROPPED_UNKNOWN_SOURCE, /* the socket has no entry in lb_conns */
	LB_COUNTERS,
};

/* An unsigned integer in a message; value = (bytes as integer) & mask. */
struct lb_field {
	__u32 offset;
	__u32 shift; /* 64 - 8 * width */
	__u32 little; /* 1: least significant byte first */
	__u32 pad;
	__u64 mask;
	__u64 value; /* for a match: what the masked field must be */
};

struct lb_framing {
	enum lb_framing_flag flags;
	__u32 window; /* leading bytes that hold every declared field */
	__u32 min_message;
	__u32 max_message;
	__s64 adjust; /* whole message = length field + adjust */
	struct lb_field length;
	struct lb_field id;
	struct lb_field response; /* matches: the message is a response */
	struct lb_field no_response; /* matches: the request gets no response */
	struct lb_field magic; /* must match */
};

struct lb_pool {
	enum lb_balance balance;
	__u32 pad;
};

/* User space writes the first line, any program the second. */
struct lb_backend {
	__u32 weight; /* 0: no new messages */
	__u32 stride; /* LB_STRIDE / weight */
	__u64 written_off; /* requests whose response can no longer come */
	__u64 pad0[6];

	__u64 sent; /* requests that get a response */
	__u64 answered;
	__u64 pad1[6];
};

/* One socket of the sockmap. */
struct lb_slot {
	/* user space, while no other socket refers to the slot; hold: at any time */
	__u32 generation; /* 0: free. Every reference to a slot carries one */
	enum lb_role role;
	__u32 framing;
	__u32 pool;
	__u32 batch;
	__u32 backend; /* upstream: index of lb_backends */
	__u32 traffic; /* upstream: row of lb_traffic */
	__u32 client; /* upstream: slot of the client it belongs to */
	__u32 client_generation;
	__u32 hold; /* client: pass every message */
	__u64 pad0[3];

	/* the slot's own programs, which its socket lock serialises */
	__u64 consumed_bytes; /* bytes that got a verdict */
	__u64 passed_messages;
	__u64 passed_bytes;
	__u32 batched; /* from parser to verdict: messages in what was measured */
	__u32 expecting; /* of these, how many get or are a response */
	__u32 chosen; /* fifo: index of the upstream in use */
	__u32 pad1;
	__u8 window[64]; /* scratch: the start of the message being measured */
	__u64 pad2[3];

	/* any program: the slot as a destination */
	__u64 redirected_bytes;
	__u64 sent; /* requests that get a response; client: from it, upstream: to it */
	__u64 answered;
	__u64 pad3[5];
};

/* A reference to an upstream of a client. generation 0: not in use. */
struct lb_upstream {
	__u32 slot;
	__u32 generation;
	__u32 backend;
	__u32 pad;
};

/* Written by user space only, indexed by the client's slot. */
struct lb_route {
	struct lb_upstream upstreams[LB_MAX_UPSTREAMS];
};

/* Programs only. Times are (tag << 32 | microseconds), 0: free. */
struct lb_marks {
	__u64 times[LB_MARKS];
	__u32 tags[LB_MAX_BATCH]; /* from parser to verdict */
};

struct lb_conn {
	__u32 slot;
	__u32 generation;
};

/* Per CPU, a row for each (listener, backend). */
struct lb_traffic {
	__u64 requests;
	__u64 responses;
	__u64 request_bytes;
	__u64 response_bytes;
};

/* Per CPU, indexed by backend. Microseconds; bucket numbers: see lb_histogram.h. */
struct lb_duration {
	__u64 sum;
	__u64 buckets[LB_BUCKETS];
};

/* Per CPU: whose turn it is, as virtual time (messages sent / weight). */
struct lb_turns {
	__u64 floor[LB_MAX_POOLS];
	__u64 times[LB_MAX_BACKENDS];
};

_Static_assert(sizeof(struct lb_field) == 32, "lb_field");
_Static_assert(sizeof(struct lb_framing) == 24 + 5 * 32, "lb_framing");
_Static_assert(sizeof(struct lb_backend) == 128, "lb_backend");
_Static_assert(sizeof(struct lb_slot) == 64 + 128 + 64, "lb_slot");
_Static_assert(__builtin_offsetof(struct lb_slot, consumed_bytes) == 64, "own line");
_Static_assert(__builtin_offsetof(struct lb_slot, redirected_bytes) == 192, "own line");
_Static_assert(sizeof(struct lb_route) == 512, "lb_route");
_Static_assert(sizeof(struct lb_marks) == 512, "lb_marks");

#endif
