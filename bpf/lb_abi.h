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
	LB_NEAR = 16, /* outstanding requests that an upstream keeps itself ... */
	LB_NEAR_WAYS = 4, /* ... of which so many are a set: a cache line */
	LB_MARKS = 32, /* requests of one upstream that are timed at once */
	LB_BUCKETS = 128, /* of a duration histogram: 4 for each power of two */
	LB_STRIDE = 1 << 20, /* virtual time of one message at weight 1 */
	LB_WEIGHT = 1 << 8, /* weight 1: a backend that starts slowly has a part of it */
	LB_MAX_LENGTH = 0x7fffffff, /* a length field above this is an error in any framing */
	LB_MAX_HEAD = 288, /* of a request, kept for an error reply: a DNS header and question */
	LB_MAX_KEY = 255, /* bytes that a message is hashed by: no name in DNS is longer */
	LB_TABLE = 65521, /* places of a hashed pool: a prime, and its numbers fit 16 bits */
	LB_MAX_TABLE = 1 << 16,
	LB_MAX_EDITS = 4, /* bytes of a request that its refusal changes */
	LB_MAX_TAPS = 4, /* that are open at once: the verdict looks at each */
	LB_SAMPLE = 64, /* leading bytes of a message that its sample shows */
	LB_WORDS = 4, /* of a message that are remembered while tests compare them */
	LB_VACANT = 0x7fffffff, /* no slot has such a number */
	LB_MAX_TESTS = 1024, /* that the rules of one listener are made of: a bounded loop */
};

enum lb_role {
	LB_ROLE_FREE,
	LB_ROLE_CLIENT,
	LB_ROLE_UPSTREAM,
	LB_ROLE_POST, /* what user space has to say to mapped sockets */
	LB_ROLE_CANARY, /* shows that the strparser's queue has run empty; its data is dropped */
	LB_ROLE_SHARED, /* an upstream that carries the messages of many clients */
};

/* Why a source stands still: the parser stops it in front of a message. */
enum lb_pause {
	LB_RUNNING,
	LB_PAUSED_FULL, /* all destinations have their budget of bytes waiting */
	LB_PAUSED_LIMIT, /* all backends have max_outstanding requests */
	LB_PAUSED_NO_UPSTREAM, /* no live upstream */
	LB_PAUSED_HELD, /* user space asked for it */
	LB_PAUSED_RATE, /* over the rate of the listener, or of the client's address */
	LB_PAUSED_ORDER, /* fifo: the message goes elsewhere than those that are outstanding */
	LB_PAUSED_CONNECT, /* its upstream is still to be connected: wanted says which */
};

enum lb_post_kind {
	LB_POST_FORWARD, /* a message of the source named, which user space has taken over */
	LB_POST_REPLY, /* an answer of the balancer's own to the client named */
	LB_POST_CHARGE, /* no message: one of user space's is charged to the rates slot and
			   generation */
};

/* Why a message is denied. */
enum lb_denial {
	LB_NOT_DENIED,
	LB_DENIED_RATE, /* over a rate that denies */
	LB_DENIED_TRANSFER, /* a request with many responses, on shared upstreams */
	LB_DENIED_RULE, /* by a rule of its listener */
};

enum lb_balance {
	LB_ROUND_ROBIN,
	LB_LEAST_OUTSTANDING,
	LB_RANDOM,
	LB_HASH,
};

/* What a message is hashed by. */
enum lb_key {
	LB_KEY_NONE, /* they are not hashed */
	LB_KEY_FIELD, /* bytes at an offset */
	LB_KEY_STRING, /* bytes behind their number */
	LB_KEY_DNS_NAME, /* of the question of a DNS message over TCP, upper case as lower */
	LB_KEY_CLIENT, /* the client's address, which user space has hashed */
};

/* Why a client's messages are looked into. */
enum lb_routed {
	LB_ROUTED_HASH = 1 << 0, /* they may be for a pool that is hashed */
	LB_ROUTED_RULES = 1 << 1, /* its listener has rules */
};

/* What a test of a rule looks at. */
enum lb_subject {
	LB_SUBJECT_NONE, /* always holds */
	LB_SUBJECT_MESSAGE, /* bytes from an offset on */
	LB_SUBJECT_NAME, /* of a DNS question, upper case as lower: bytes from so many before its
			    end on */
	LB_SUBJECT_LABEL, /* whether a label of that name starts so many bytes before its end */
	LB_SUBJECT_CLIENT, /* a word of the client's address, by its number */
};

enum lb_framing_flag {
	LB_HAS_ID = 1 << 0,
	LB_HAS_RESPONSE = 1 << 1,
	LB_HAS_NO_RESPONSE = 1 << 2,
	LB_HAS_MAGIC = 1 << 3,
	LB_FIFO = 1 << 4,
	LB_MANY_RESPONSES = 1 << 5, /* a request may get several */
	LB_KEEP_HEADS = 1 << 6, /* of requests, for error replies */
	LB_ID_AFTER = 1 << 7, /* the id stands behind a counted string */
	LB_NO_RESPONSE_SET = 1 << 8, /* no_response is looked up in a set, not compared */
	LB_ANY_RESPONSES = 1 << 9, /* even a quiet request may get some */
	LB_DNS_TRANSFERS = 1 << 10, /* a DNS question tells what gets several (lb_transfer.h) */
	LB_HAS_ERROR = 1 << 11, /* some responses are errors, which are counted */
};

/* Index of lb_counters, in messages (the pauses: in pauses); everything but a redirect has one. */
enum lb_counter {
	LB_PASSED_NO_UPSTREAM, /* its last upstream died while the message was still coming in */
	/* Too many requests are outstanding on its upstream, or there is no memory to change it. */
	LB_PASSED_NO_FLIGHT,
	LB_DROPPED_CLIENT_GONE, /* a response to a client that has left */
	LB_DROPPED_UNSOLICITED, /* a backend's message that answers nothing */
	LB_DROPPED_UPSTREAM_GONE, /* a message without response whose upstream was just removed */
	LB_DROPPED_LATE, /* a response to a request that has been given up */
	LB_DROPPED_UNKNOWN_SOURCE, /* the socket has no entry in lb_conns */
	LB_FORWARDED, /* messages that user space posted for a source that it had taken over */
	LB_REPLIES, /* answers of the balancer's own */
	LB_PAUSES_FULL,
	LB_PAUSES_LIMIT,
	LB_PAUSES_NO_UPSTREAM,
	LB_PAUSES_HELD,
	LB_PAUSES_RATE,
	LB_PAUSES_ORDER,
	LB_PAUSES_CONNECT,
	LB_DROPPED_RATE_LIMITED, /* over a rate that denies */
	LB_DROPPED_TRANSFER, /* a zone transfer, on shared upstreams */
	LB_DROPPED_RULE, /* denied by a rule */
	LB_REFUSALS, /* of what was dropped, requests that became their own refusals */
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

/* byte = byte & keep | set */
struct lb_edit {
	__u32 offset; /* from the start of the message */
	__u8 keep;
	__u8 set;
	__u16 pad;
};

struct lb_framing {
	enum lb_framing_flag flags;
	__u32 window; /* leading bytes that hold every declared field */
	__u32 min_message;
	__u32 max_message;
	__s64 adjust; /* whole message = length field + adjust */
	__u32 id_width; /* bytes */
	__u32 edits; /* that make a request its own refusal; 0: there is none */
	struct lb_field length;
	struct lb_field id; /* its offset with LB_ID_AFTER: where it stands behind an empty string */
	struct lb_field response_id; /* of a backend's messages: differs in its offset at most */
	struct lb_field id_after; /* LB_ID_AFTER: the length of the string, which follows it */
	struct lb_field response; /* matches: the message is a response */
	struct lb_field no_response; /* matches: the request gets no response */
	struct lb_field magic; /* must match */
	struct lb_field error; /* matches: the response is an error */
	__u64 no_response_set[4]; /* LB_NO_RESPONSE_SET: a bit for each value of the byte */
	struct lb_edit refusal[LB_MAX_EDITS];
};

struct lb_pool {
	enum lb_balance balance;
	__u32 max_in_flight; /* requests on one shared upstream */
	__u32 route; /* index of lb_routes, if its clients share their upstreams */
	__u32 pad;
};

/* User space writes the first line, any program the second. */
struct lb_backend {
	__u32 weight; /* in LB_WEIGHT-ths; 0: no new messages */
	__u32 stride; /* LB_STRIDE * LB_WEIGHT / weight */
	__u64 written_off; /* requests whose response can no longer come */
	__u64 max_outstanding; /* requests; 0: no limit */
	__u32 pool;
	__u32 pad;
	__u64 pad0[4];

	__u64 sent; /* requests that get a response */
	__u64 answered;
	__u64 errors; /* responses, where the framing has LB_HAS_ERROR */
	__u64 forgiven; /* of these, what had come when the latest response came that was none */
	__u64 pad1[4];
};

/*
 * A token bucket (lb_rate.h). User space writes the first fields, while no slot refers
 * to it, any program the last: programs need all of them at once, so they share a line.
 */
struct lb_rate {
	__u64 interval; /* nanoseconds for a message */
	__u64 burst; /* nanoseconds for all that may come at once */
	__u32 deny; /* what is over is dropped; else it waits */
	__u32 pad0;
	__u64 full; /* when it is full again, as bpf_ktime_get_ns() */
	__u64 pad1[4];
};

/* Before each message of the post channel. */
struct lb_post {
	__u32 length; /* of the message */
	enum lb_post_kind kind;
	__u32 slot;
	__u32 generation;
};

/* One socket of the sockmap. */
struct lb_slot {
	/* user space, while no other socket refers to the slot; hold: at any time */
	__u32 generation; /* 0: free. Every reference to a slot carries one */
	enum lb_role role;
	__u32 framing;
	__u32 pool; /* where its messages go that no rule sends elsewhere */
	__u32 batch;
	__u32 backend; /* upstream: index of lb_backends */
	__u32 traffic; /* row of lb_traffic: the sum of the client's and the upstream's */
	__u32 client; /* upstream: slot of the client it belongs to */
	__u32 client_generation;
	__u32 budget; /* bytes that may wait for this socket before its senders are paused */
	__u32 hold; /* pause in front of the next message */
	__u32 route; /* client: index of lb_routes; not its own number: it shares the upstreams */
	__u64 written_off; /* of the requests, those whose response cannot come any more */
	__u32 flights; /* shared upstream: index of the first of its lb_flights ... */
	__u32 flight_mask; /* ... and their number less 1 */

	/*
	 * The slot as a source: its own programs, which its socket lock serialises. User
	 * space clears paused while the socket is out of lb_sources. For a source that
	 * user space has taken over, the post channel's programs write here instead.
	 */
	__u64 consumed_bytes; /* bytes that got a verdict */
	__u64 passed_messages;
	__u64 id; /* from parser to verdict: of a message that is still coming in */
	enum lb_pause paused;
	__u32 started; /* a message that is still coming in: too late to pause */
	__u32 batched; /* from parser to verdict: messages in what was measured */
	__u32 expecting; /* of these, how many get or are a response */
	__u32 chosen; /* fifo: index of the upstream in use */
	__u32 target; /* from parser to verdict: slot and generation of the destination */
	__u32 target_generation;
	__u32 answers; /* from parser to verdict: responses that were awaited */
	struct lb_post post; /* post channel: of the message to come, length 0: a header comes */
	__u8 window[64]; /* scratch: the start of the message being measured */
	__u32 open; /* client: its last request was quiet and may be answered all the same */
	__u32 opening; /* from parser to verdict: so is the last message of what was measured */
	__u32 late; /* shared upstream, within the verdict: responses to what was given up */
	enum lb_denial denied; /* from parser to verdict: to be dropped, or refused */
	__u64 rate_full; /* when the rate is full again, with what was allowed */
	__u64 address_full;
	__u32 allowed; /* messages, by its rates: what is not needed is given back */
	__u32 rate; /* client, written before insertion: its listener's; 0: none */
	__u32 address_rate; /* the same: its address's */
	enum lb_routed routed; /* the same: its messages are looked into (lb_routing) */
	/* Client: what the message at its head goes to; the same as pool and route, but for rules. */
	__u32 to_pool;
	__u32 to_route;
	__u32 listener; /* client, written before insertion: whose taps see its messages; 0: none */
	__u32 sample; /* within the verdict: number of the first message's sample; 0: it has none */
	/* LB_PAUSED_CONNECT: a bit for each place of its route that is to be connected. The message
	 * goes there afterwards, if it can. */
	__u32 wanted;
	__u32 charged; /* the backend there has had its turn already */
	__u32 vacant; /* client, user space: places of its route that are LB_VACANT */
	__u32 pad2[11];

	/* the slot as a destination: any program */
	__u64 redirected_bytes;
	__u64 base; /* 1 << 32 | write_seq before the first redirect; 0: there was none */
	__u64 sent; /* requests that get a response; client: from it, upstream: to it */
	__u64 answered;
	__u64 ambiguous; /* upstream: requests among sent that have no entry */
	__u64 disambiguated; /* of these, answered */
	__u64 quiet; /* upstream: requests that get no response */
	__u64 delivered_quiet; /* of these, acknowledged for sure */
	__u64 mark_bytes; /* when so many bytes are acknowledged ... */
	__u64 mark_quiet; /* ... these are too */
	__u64 cursor; /* shared upstream: id of the next request */
	__u64 far; /* upstream: requests that have an entry in lb_inflight */
	__u64 pad3[4];
};

/*
 * A reference to an upstream of a client. generation 0: not in use. slot LB_VACANT: there is
 * no upstream yet; it is connected when a message is for this backend.
 */
struct lb_upstream {
	__u32 slot;
	__u32 generation;
	__u32 backend;
	__u32 member; /* hashed: which of the pool's backends it is */
};

/* Written by user space only: one for each client's slot, then those that clients share. */
struct lb_route {
	struct lb_upstream upstreams[LB_MAX_UPSTREAMS];
};

/* A request that is outstanding, where ids tell them apart. */
struct lb_near {
	__u64 id;
	__u64 left; /* (microseconds << 32 | number of its sample or 0), 0: free */
};

/*
 * What an upstream keeps of its outstanding requests. Where their order tells them apart, these
 * are LB_MARKS words that say when they left, (tag << 32 | microseconds), 0: free.
 */
struct lb_marks {
	struct lb_near requests[LB_NEAR];
	__u64 sampled; /* by order: (tag << 32 | number of its sample), 0: none */
};

/* Those that find no room there. */
struct lb_inflight_key {
	__u32 slot; /* of the upstream */
	__u32 generation;
	__u64 id;
};

struct lb_inflight {
	__u32 time; /* microseconds */
	__u32 sample; /* its number; 0: it has none */
};

/* The start of an outstanding request, by the same key. */
struct lb_head {
	__u32 length;
	__u8 bytes[LB_MAX_HEAD];
	__u32 pad;
};

enum lb_flight_state {
	LB_FLIGHT_FREE,
	LB_FLIGHT_TAKEN,
	LB_FLIGHT_ANSWERED, /* the parser has seen the response; the verdict follows */
};

/*
 * A request that is outstanding on a shared upstream; a place in the upstream's table is
 * the low bits of the id that the backend sees.
 */
struct lb_flight {
	/* Freed by the response only, as long as the upstream lives. */
	enum lb_flight_state state;
	__u32 time; /* microseconds */
	__u64 id; /* that the backend sees */
	__u64 original; /* that the client sent */
	__u32 client;
	__u32 client_generation;
	__u64 given_up; /* user space: id + 1 of the request that was given up; its response is late
			 */
	__u32 sample; /* its number; 0: it has none */
	__u32 pad;
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

/* How messages are hashed, by number of the pool. */
struct lb_hash {
	enum lb_key key;
	__u32 offset; /* field: of its first byte; string: of its length */
	__u32 width; /* bytes of the field, or of the string's length */
	__u32 little; /* string: least significant byte of the length first */
	__u32 table; /* index of lb_tables */
	__u32 max_load; /* most requests outstanding, in 1024ths of the mean by weight; 0: any
			   number */
};

/* Who gets the messages of a hashed pool. */
struct lb_table {
	__u32 backends[LB_MAX_UPSTREAMS]; /* by member */
	__u8 members[LB_MAX_TABLE];
};

/* What is known of a client whose messages are looked into, by its slot. */
struct lb_routing {
	/* user space, before the client is inserted */
	__u64 hash; /* of its address */
	__u64 address[3]; /* in network byte order, 16 bytes with zeros behind; then its version */
	__u32 rules; /* index of lb_rules */
	__u32 pad;
	/* the programs of the client's socket */
	__u64 decision; /* for the message at its head */
	__u64 bound; /* the decision by which its latest upstream was chosen ... */
	__u64 bound_mask; /* ... and what another one must have in common to mean the same */
	/* scratch of lb_rules.h */
	__u64 words[LB_WORDS]; /* that were loaded ... */
	__u32 words_at[LB_WORDS]; /* ... from these offsets in the message, plus one; 0: none */
	__u32 next; /* test */
	__u32 name_end; /* offset in the message; 0: it has no whole name */
	__u32 name_missing; /* it has not all arrived */
	__u32 pad2;
	__u64 labels[4]; /* a bit for each byte of the name: a label starts there */
};

/*
 * A test of a rule: what its subject has at offset, eight bytes at most, masked. Tests are
 * published as ranges, and only lead forward.
 */
struct lb_test {
	__u64 mask; /* as the bytes lie in memory */
	__u64 value;
	enum lb_subject subject;
	__u32 offset;
	__u32 width; /* bytes that have to be there */
	__u32 then; /* index of the test that follows if it holds, with decision 0 ... */
	__u32 otherwise; /* ... and if it does not */
	__u32 names; /* the first one of a range: whether any looks at the name */
	__u64 decision; /* if it holds; see lb_decide.h */
};

/* The rules of a listener. */
struct lb_rules {
	__u32 first; /* index of lb_tests: switched in one store */
	__u32 pad;
};

/* What somebody sees of a listener's messages (lb_tap.h). */
struct lb_tap {
	/* user space */
	__u32 listener; /* 0: closed */
	__u32 life; /* of the place: tells its samples from those of who had it before */
	__u64 interval; /* nanoseconds for a sample */
	__u64 burst; /* nanoseconds for all that may come at once */
	/* any program */
	__u64 full; /* as in lb_rate */
	__u64 lost; /* samples for which there was no room */
	__u64 pad[3];
};

struct lb_taps {
	__u32 open; /* user space: how many are. All that programs read while none is */
	__u32 pad0;
	__u64 pad1[7];
	__u64 samples; /* any program: that were numbered */
	__u64 pad2[7];
	struct lb_tap taps[LB_MAX_TAPS];
};

enum lb_record_kind {
	LB_RECORD_SAMPLE,
	LB_RECORD_ANSWER,
};

/* What lb_samples carries to user space: an answer is no more than this. */
struct lb_record {
	enum lb_record_kind kind;
	__u32 number; /* of the sample; not 0 */
	__u64 time; /* bpf_ktime_get_ns() */
};

/* What becomes of a message that was sampled. */
enum lb_fate {
	LB_FATE_AWAITED, /* it went; when its response comes there is an answer */
	LB_FATE_UNTIMED, /* it went; its response will not be recognized */
	LB_FATE_QUIET, /* it went, and gets no response */
	LB_FATE_DENIED, /* it did not go */
};

struct lb_sample {
	struct lb_record record;
	__u32 tap;
	__u32 life;
	enum lb_fate fate;
	__u32 backend; /* unless it was denied */
	__u32 length; /* of the message */
	__u32 batch; /* messages that travel together, of which this is the first */
	__u32 client; /* slot and generation ... */
	__u32 client_generation;
	__u32 port; /* ... and who it is for its socket */
	__u32 family; /* AF_INET, AF_INET6 */
	__u32 address[4]; /* network byte order */
	__u32 shown; /* bytes */
	__u32 pad;
	__u8 bytes[LB_SAMPLE];
};

_Static_assert(sizeof(struct lb_field) == 32, "lb_field");
_Static_assert(sizeof(struct lb_edit) == 8, "lb_edit");
_Static_assert(sizeof(struct lb_framing) == 32 + 10 * 32, "lb_framing");
_Static_assert(sizeof(struct lb_backend) == 128, "lb_backend");
_Static_assert(sizeof(struct lb_rate) == 64, "lb_rate");
_Static_assert(sizeof(struct lb_slot) == 64 + 256 + 128, "lb_slot");
_Static_assert(__builtin_offsetof(struct lb_slot, consumed_bytes) == 64, "own line");
_Static_assert(__builtin_offsetof(struct lb_slot, redirected_bytes) == 320, "own line");
_Static_assert(sizeof(struct lb_route) == 512, "lb_route");
_Static_assert(sizeof(struct lb_marks) == 264, "lb_marks");
_Static_assert(sizeof(struct lb_inflight_key) == 16, "lb_inflight_key");
_Static_assert(LB_NEAR * sizeof(struct lb_near) == LB_MARKS * sizeof(__u64), "lb_near");
_Static_assert(sizeof(struct lb_head) == 8 + LB_MAX_HEAD, "lb_head");
_Static_assert(sizeof(struct lb_post) == 16, "lb_post");
_Static_assert(sizeof(struct lb_flight) == 48, "lb_flight");
_Static_assert(sizeof(struct lb_table) == 128 + LB_MAX_TABLE, "lb_table");
_Static_assert(sizeof(struct lb_tap) == 64, "lb_tap");
_Static_assert(sizeof(struct lb_taps) == 128 + 64 * LB_MAX_TAPS, "lb_taps");
_Static_assert(sizeof(struct lb_sample) == 80 + LB_SAMPLE, "lb_sample");
_Static_assert(sizeof(struct lb_record) == 16, "lb_record");
_Static_assert(sizeof(struct lb_routing) == 40 + 24 + 64 + 32, "lb_routing");
_Static_assert(sizeof(struct lb_test) == 48, "lb_test");

#endif
