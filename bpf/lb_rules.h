/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rules: the first one that matches a message decides on it.
 *
 * User space makes tests of a listener's rules (lb/dataplane/rules.py): each compares up to
 * eight bytes with a value, and names the test that follows if it holds and if it does not.
 * All lead forward, and the last one always holds, so a message is decided on within as
 * many steps as there are tests. What they look at is loaded once, as long as it is little.
 *
 * What the message does not have does not match; what has not arrived yet is waited for,
 * but only by a test that is reached. A name that ends in a pointer, or not at all, does
 * not match any suffix: nobody knows what a backend makes of it.
 *
 * lb/rules.py has the same in Python; the tests compare both. What is found on the way
 * stands in lb_routing: stack is short.
 */
#ifndef LB_RULES_H
#define LB_RULES_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_decide.h"
#include "lb_hash.h"
#include "lb_loop.h"
#include "lb_maps.h"

enum lb_outcome {
	LB_FAILS,
	LB_HOLDS,
	LB_WAITS, /* its bytes have not arrived */
};

/* The word of the message at an offset, from which on it has so many bytes, into its place. */
static __always_inline enum lb_outcome lb_load_word(struct lb_message *m, __u32 at, __u32 width,
						    __u32 place)
{
	struct lb_routing *routing = m->routing;
	__u32 size;

	if (at > m->length || width > m->length - at)
		return LB_FAILS;
	if (at + width > m->available)
		return LB_WAITS;
	if (routing->words_at[place] == at + 1)
		return LB_HOLDS;
	size = m->available - at;
	if (size > 8)
		size = 8;
	/* Less one: see lb_inflight.h. */
	size -= 1;
	asm volatile("" : "+r"(size));
	routing->words[place] = 0;
	if (size > 7 ||
	    bpf_skb_load_bytes(m->skb, m->offset + at, &routing->words[place], size + 1))
		return LB_FAILS;
	routing->words_at[place] = at + 1;
	return LB_HOLDS;
}

static __always_inline enum lb_outcome lb_test(struct lb_message *m, const struct lb_test *test)
{
	struct lb_routing *routing = m->routing;
	/* What neighbouring tests look at is mostly side by side. */
	__u32 at = test->offset, place = at >> 3 & (LB_WORDS - 1), start;
	enum lb_outcome loaded;
	__u64 word;

	if (test->subject == LB_SUBJECT_NONE)
		return LB_HOLDS;
	if (test->subject == LB_SUBJECT_CLIENT)
		return at < 3 && (routing->address[at] & test->mask) == test->value;
	if (test->subject != LB_SUBJECT_MESSAGE) {
		if (routing->name_missing)
			return LB_WAITS;
		if (at > routing->name_end)
			return LB_FAILS;
		at = routing->name_end - at;
		if (test->subject == LB_SUBJECT_LABEL) {
			start = at - LB_DNS_QUESTION;
			return at >= LB_DNS_QUESTION &&
			       routing->labels[start >> 6 & 3] >> (start & 63) & 1;
		}
	}
	loaded = lb_load_word(m, at, test->width, place);
	if (loaded != LB_HOLDS)
		return loaded;
	word = routing->words[place];
	if (test->subject == LB_SUBJECT_NAME)
		word = lb_fold(word);
	return (word & test->mask) == test->value;
}

/* One test more. */
static long lb_test_step(__u32 i, void *context)
{
	struct lb_message *m = context;
	struct lb_routing *routing = m->routing;
	struct lb_test *test;

	(void)i;
	if (!routing)
		return 1;
	test = bpf_map_lookup_elem(&lb_tests, &routing->next);
	if (!test)
		return 1;
	switch (lb_test(m, test)) {
	case LB_FAILS:
		routing->next = test->otherwise;
		return 0;
	case LB_HOLDS:
		routing->next = test->then;
		m->hash = test->decision;
		return test->decision != 0;
	default:
		m->hash = LB_INCOMPLETE;
		return 1;
	}
}

/* What the rules of its listener decide on a message; LB_INCOMPLETE: it depends on what comes. */
static __always_inline __u64 lb_by_rules(struct lb_message *m)
{
	struct lb_routing *routing = m->routing;
	struct lb_rules *rules;
	struct lb_test *test;
	enum lb_span span;

	rules = bpf_map_lookup_elem(&lb_rules, &routing->rules);
	if (!rules)
		return 0;
	routing->next = *(volatile __u32 *)&rules->first;
	__builtin_memset(routing->words_at, 0, sizeof(routing->words_at));
	test = bpf_map_lookup_elem(&lb_tests, &routing->next);
	if (test && test->names) {
		__builtin_memset(routing->labels, 0, sizeof(routing->labels));
		span = lb_look_at_name(m);
		routing->name_missing = span == LB_SPAN_MISSING;
		routing->name_end = span == LB_SPAN_THERE ? m->at + m->bytes : 0;
	}
	m->hash = lb_unknown(0);
	bpf_loop(LB_MAX_TESTS, lb_test_step, m, 0);
	return m->hash;
}

#endif
