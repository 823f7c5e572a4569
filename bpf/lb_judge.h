/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a backend's responses say about it, where the protocol has error responses.
 *
 * User space wants to know how many came in a row. That is errors - forgiven: both only
 * grow, so a look at any time is right, and no look is needed to forgive.
 */
#ifndef LB_JUDGE_H
#define LB_JUDGE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_framing.h"
#include "lb_maps.h"

/*
 * Takes note of a batch of responses; errors as in struct lb_batch. again: of the first one
 * it has been taken already.
 */
static __noinline int lb_judge(__u32 number, __u32 errors, __u32 messages, __u32 again)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &number);
	__u64 before, found = errors & LB_ERRORS, last = errors >> LB_LAST_ERRORS;

	if (!backend)
		return 0;
	if (again) {
		messages--;
		if (errors & LB_FIRST_ERROR)
			found--;
		if (last > messages)
			last = messages;
	}
	if (found)
		before = __sync_fetch_and_add(&backend->errors, found);
	else
		before = *(volatile __u64 *)&backend->errors;
	if (last < messages && backend->forgiven != before + found - last)
		backend->forgiven = before + found - last;
	return 0;
}

#endif
