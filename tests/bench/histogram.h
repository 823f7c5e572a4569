/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log-linear histogram of nanoseconds, as HdrHistogram's: exact below 128 ns,
 * above it 128 buckets for each power of two, so a percentile is off by less
 * than 0.8 %.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>

enum {
	STEPS_LOG = 7,
	STEPS = 1 << STEPS_LOG,
	BUCKETS = (64 - STEPS_LOG + 1) * STEPS,
};

struct histogram {
	uint64_t buckets[BUCKETS];
	uint64_t count;
	uint64_t most;
};

static inline void record(struct histogram *h, uint64_t value)
{
	unsigned int shift = 0;
	uint64_t bucket = value;

	if (value >= STEPS) {
		shift = 63 - (unsigned int)__builtin_clzll(value) - STEPS_LOG;
		bucket = (uint64_t)shift * STEPS + (value >> shift);
	}
	h->buckets[bucket]++;
	h->count++;
	if (value > h->most)
		h->most = value;
}

/* The middle of the bucket that holds this share of all values. */
static inline uint64_t percentile(const struct histogram *h, double share)
{
	uint64_t rank = (uint64_t)(share * (double)h->count), below = 0;

	for (uint64_t i = 0; i < BUCKETS; i++) {
		below += h->buckets[i];
		if (below > rank) {
			uint64_t shift = i < STEPS ? 0 : i / STEPS - 1;
			uint64_t floor = i < STEPS ? i : (i - shift * STEPS) << shift;
			uint64_t middle = floor + ((1ULL << shift) >> 1);

			return middle < h->most ? middle : h->most;
		}
	}
	return h->most;
}

/* As a JSON object, in microseconds. */
static inline void print_latencies(const struct histogram *h)
{
	static const struct {
		const char *name;
		double share;
	} shares[] = { { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 }, { "p99.9", 0.999 } };

	printf("{");
	for (size_t i = 0; i < sizeof(shares) / sizeof(*shares); i++)
		printf("\"%s\": %.1f, ", shares[i].name,
		       (double)percentile(h, shares[i].share) / 1000);
	printf("\"max\": %.1f}", (double)h->most / 1000);
}

#endif
