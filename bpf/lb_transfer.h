/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Zone transfers: DNS queries that get many responses.
 *
 * A shared upstream's id is free when the first response to it has come, and a response
 * that comes later may then meet a stranger's request. So these queries are refused where
 * clients share upstreams. What is asked for stands behind the name (RFC 1035, 4.1.2).
 */
#ifndef LB_TRANSFER_H
#define LB_TRANSFER_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_decide.h"

enum lb_qtype {
	LB_IXFR = 251, /* RFC 1995 */
	LB_AXFR = 252, /* RFC 5936 */
};

/* Whether the messages of the client in a slot have to be looked at. */
static __always_inline bool lb_transfers(const struct lb_slot *client, __u32 number,
					 const struct lb_framing *framing)
{
	return framing->flags & LB_DNS_TRANSFERS && client->route != number;
}

/*
 * Whether a query that starts at offset is one, as far as it has arrived. A global function,
 * because the parser asks it in a loop: the verifier looks at it once.
 */
__noinline int lb_is_transfer(struct __sk_buff *skb, __u32 offset, __u32 available)
{
	struct lb_message m = {
		.skb = skb,
		.offset = offset,
		.length = available,
		.available = available,
	};
	__u32 word, type;

	if (lb_look_at_name(&m) != LB_SPAN_THERE || m.at + m.bytes + sizeof(word) > available ||
	    bpf_skb_load_bytes(skb, offset + m.at + m.bytes, &word, sizeof(word)))
		return 0;
	word = __builtin_bswap32(word);
	/* Behind the root, which is one byte, or a pointer, which is two. */
	type = word >> 24 ? word & 0xffff : word >> 8 & 0xffff;
	return type == LB_AXFR || type == LB_IXFR;
}

#endif
