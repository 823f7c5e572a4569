/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which bucket of a duration histogram? Pure, so that the tests compare it with
 * bucket_limit() of lb/dataplane/counters.py, built by the host compiler.
 */
#ifndef LB_HISTOGRAM_H
#define LB_HISTOGRAM_H

#include <linux/types.h>

/* Histogram bucket: below 4 us exact, then four for each power of two. */
static __always_inline __u32 lb_bucket(__u32 us)
{
	__u32 log = 0, rest = us;

	if (us < 4)
		return us;
	if (rest >= 1U << 16) {
		rest >>= 16;
		log += 16;
	}
	if (rest >= 1U << 8) {
		rest >>= 8;
		log += 8;
	}
	if (rest >= 1U << 4) {
		rest >>= 4;
		log += 4;
	}
	if (rest >= 1U << 2) {
		rest >>= 2;
		log += 2;
	}
	log += rest >> 1;
	return (log - 1) * 4 + ((us >> (log - 2)) & 3);
}

#endif
