// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The least that a proxy in a sockmap can do: where a message ends, and whose turn it
 * is. Nothing is accounted for, nobody is ever paused, and what goes wrong is lost:
 * a yardstick for the benchmark (bare.py), not a balancer.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb_position.h"

enum {
	BARE_PREFIX = 4, /* the length field, which does not count itself */
	BARE_BATCH = 64, /* messages that leave at once, as lb_measure() has them */
	BARE_TARGETS = 8,
};

/* Where what a socket receives goes: in turn to each of these slots. */
struct bare_route {
	__u32 count;
	__u32 turn;
	__u32 targets[BARE_TARGETS];
};

/* slot -> socket */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bare_socks SEC(".maps");

/* socket cookie -> where its messages go */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct bare_route);
} bare_routes SEC(".maps");

/* All whole messages that are there, up to a batch of them; or the first, if it is not whole. */
SEC("sk_skb/stream_parser")
int bare_parser(struct __sk_buff *skb)
{
	struct lb_position position;
	__u32 available, prefix, length, total = 0;

	if (lb_position(skb, &position))
		return -EFAULT;
	available = skb->len - position.offset;
	for (int i = 0; i < BARE_BATCH; i++) {
		if (available - total < BARE_PREFIX)
			break;
		if (bpf_skb_load_bytes(skb, position.offset + total, &prefix, sizeof(prefix)))
			return -EFAULT;
		length = bpf_ntohl(prefix) + BARE_PREFIX;
		if (length > available - total)
			return total ? total : length;
		total += length;
	}
	return total;
}

SEC("sk_skb/stream_verdict")
int bare_verdict(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct bare_route *route = bpf_map_lookup_elem(&bare_routes, &cookie);
	__u32 turn;

	if (!route)
		return SK_DROP;
	/* Under the lock of the socket that it belongs to, so no atomics. */
	turn = route->turn;
	route->turn = turn + 1 < route->count ? turn + 1 : 0;
	if (turn >= BARE_TARGETS)
		return SK_DROP;
	return bpf_sk_redirect_map(skb, &bare_socks, route->targets[turn], 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
