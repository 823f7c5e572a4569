/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * bpf_loop(), and what old verifiers make of it.
 *
 * Before 6.7 the verifier follows a callback through one call, with the context as
 * the caller filled it, and removes the branches that this call cannot take. So
 * whatever a callback both branches on and changes must start as a value that the
 * verifier does not know, or the loop always behaves as in its first round ("bpf:
 * verify callbacks as if they are called unknown number of times").
 */
#ifndef LB_LOOP_H
#define LB_LOOP_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

static volatile __u64 lb_zero; /* a map's memory, and that may change */

static __always_inline __u64 lb_unknown(__u64 value)
{
	return value + lb_zero;
}

#endif
